//! Exec and attach over SPDY: one stream each for error, stdin, stdout, stderr and resize.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::channels::{self, Ending, Kind, Wire, channel, parse_size};
use super::spdy::{self, Stream, StreamWriter};
use super::{Refusal, upgrade};
use crate::runtime::{Session, StreamRequest};

const PROTOCOL_HEADER: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_HEADER: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
/// How long a client may take to open its streams.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// Answers with 101 if one of `known` is among the protocols that the client offers; `serve` gets the connection and the
/// protocol.
///
/// Source: kubernetes, k8s.io/apimachinery/pkg/util/httpstream (`Handshake`).
pub(super) fn switch<F, S>(request: Request, known: &[&'static str], serve: S) -> Response
where
    S: FnOnce(TokioIo<hyper::upgrade::Upgraded>, &'static str) -> F + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let offered = upgrade::list(request.headers(), &PROTOCOL_HEADER);
    if offered.is_empty() {
        let message = "unable to upgrade: X-Stream-Protocol-Version is required".to_owned();
        return Refusal(StatusCode::BAD_REQUEST, message).into_response();
    }
    let Some(chosen) = upgrade::choose(&offered, known) else {
        let message = format!(
            "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
            offered.join(" "),
            known.join(" ")
        );
        let mut response = Refusal(StatusCode::FORBIDDEN, message).into_response();
        for protocol in known {
            let value = HeaderValue::from_static(protocol);
            response.headers_mut().append(ACCEPTED_HEADER, value);
        }
        return response;
    };
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(connection) => serve(TokioIo::new(connection), chosen).await,
            Err(error) => tracing::debug!(%error, "upgrade to SPDY"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert(PROTOCOL_HEADER, HeaderValue::from_static(chosen));
    response
}

/// What the versions of the protocol differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    ending: Ending,
    /// Whether a terminal's client has a stream for its size.
    resizes: bool,
}

/// The versions, the best first. Over SPDY the fifth is the fourth: a stream can be closed anyway.
const VERSIONS: [(&str, Version); 5] = [
    ("v5.channel.k8s.io", version(Ending::Status, true)),
    ("v4.channel.k8s.io", version(Ending::Status, true)),
    ("v3.channel.k8s.io", version(Ending::Text, true)),
    ("v2.channel.k8s.io", version(Ending::Text, false)),
    ("channel.k8s.io", version(Ending::Text, false)),
];

const fn version(ending: Ending, resizes: bool) -> Version {
    Version { ending, resizes }
}

/// Upgrades an exec or attach request.
pub(super) fn upgrade<F>(request: Request, wanted: StreamRequest, kind: Kind, open: F) -> Response
where
    F: Future<Output = Result<Session, String>> + Send + 'static,
{
    let known = VERSIONS.map(|(name, _)| name);
    switch(request, &known, move |connection, chosen| async move {
        let version = VERSIONS.iter().find(|(name, _)| *name == chosen);
        let (_, version) = version.expect("one of them was chosen");
        let (accept, accepted) = mpsc::channel(8);
        let session = carry(accepted, wanted, *version, kind, open);
        // The session ends with its connection, the connection once the session has said all.
        tokio::select! {
            result = spdy::serve(connection, accept) => if let Err(error) = result {
                tracing::debug!(%error, "SPDY session");
            },
            () = session => {}
        }
    })
}

#[derive(Default)]
struct Streams {
    error: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

impl Streams {
    async fn collect(
        accepted: &mut mpsc::Receiver<Stream>,
        wanted: &StreamRequest,
        version: Version,
    ) -> Option<Self> {
        let mut streams = Self::default();
        loop {
            let complete = streams.error.is_some()
                && (streams.stdin.is_some() || !wanted.stdin)
                && (streams.stdout.is_some() || !wanted.stdout)
                && (streams.stderr.is_some() || !wanted.stderr)
                && (streams.resize.is_some() || !wanted.tty || !version.resizes);
            if complete {
                return Some(streams);
            }
            let stream = accepted.recv().await?;
            match stream.headers.get("streamtype").map(String::as_str) {
                Some("error") => streams.error = Some(stream),
                Some("stdin") => streams.stdin = Some(stream),
                Some("stdout") => streams.stdout = Some(stream),
                Some("stderr") => streams.stderr = Some(stream),
                Some("resize") => streams.resize = Some(stream),
                other => tracing::debug!(?other, "a stream of no known type"),
            }
        }
    }
}

async fn carry<F>(
    mut accepted: mpsc::Receiver<Stream>,
    wanted: StreamRequest,
    version: Version,
    kind: Kind,
    open: F,
) where
    F: Future<Output = Result<Session, String>>,
{
    let collected = Streams::collect(&mut accepted, &wanted, version);
    let collected = tokio::time::timeout(OPEN_TIMEOUT, collected).await;
    let Ok(Some(streams)) = collected else { return };
    let (stdin_sender, stdin) = mpsc::channel(16);
    let (resize_sender, resize) = mpsc::channel(16);
    let (out, mut out_end) = mpsc::channel::<(u8, Bytes)>(16);
    let writer = |stream: &Option<Stream>| stream.as_ref().map(|s| s.writer.clone());
    let writers = [
        (channel::STDOUT, writer(&streams.stdout)),
        (channel::STDERR, writer(&streams.stderr)),
        (channel::ERROR, writer(&streams.error)),
    ];
    let input = async move {
        if let Some(mut stream) = streams.stdin {
            while let Some(data) = stream.data.recv().await {
                if stdin_sender.send(data).await.is_err() {
                    break;
                }
            }
        }
    };
    let sizes = async move {
        let Some(mut stream) = streams.resize else {
            return;
        };
        let mut pending = Vec::new();
        while let Some(data) = stream.data.recv().await {
            // One JSON object after the other, however they are cut into frames.
            pending.extend_from_slice(&data);
            while let Some(end) = pending.iter().position(|b| *b == b'}') {
                let size = parse_size(&pending[..=end]);
                pending.drain(..=end);
                if let Some(size) = size
                    && resize_sender.send(size).await.is_err()
                {
                    return;
                }
            }
            if pending.len() > 1024 {
                return;
            }
        }
    };
    let output = async {
        while let Some((number, data)) = out_end.recv().await {
            let target = writers
                .iter()
                .find(|(n, _)| *n == number)
                .and_then(|(_, w)| w.as_ref());
            if let Some(writer) = target
                && writer.write(data).await.is_err()
            {
                return;
            }
        }
        for (_, writer) in &writers {
            if let Some(writer) = writer {
                close(writer).await;
            }
        }
    };
    let abandoned = CancellationToken::new();
    let left = abandoned.clone();
    let session = async move {
        let wire = Wire {
            stdin,
            resize,
            out: out.clone(),
        };
        let Some(outcome) = channels::carry(open, kind, wire).await else {
            return left.cancel();
        };
        if let Some(told) = outcome.told(version.ending) {
            // Fails only if the client left.
            let _left = out.send((channel::ERROR, told)).await;
        }
    };
    let feeding = async {
        tokio::join!(input, sizes);
        std::future::pending::<()>().await;
    };
    let serving = async {
        tokio::join!(session, output);
    };
    // What is still typed when the process has ended is read by nobody.
    tokio::select! {
        () = serving => {}
        () = feeding => {}
        () = abandoned.cancelled() => return,
    }
    // The client hangs up once it has read everything.
    if let Some((_, Some(writer))) = writers.last() {
        let _hung_up = tokio::time::timeout(OPEN_TIMEOUT, writer.gone()).await;
    }
}

async fn close(writer: &StreamWriter) {
    // Fails only if the connection is gone, and the stream with it.
    let _gone = writer.close().await;
}
