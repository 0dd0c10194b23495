//! Exec and attach over SPDY: one stream each for error, stdin, stdout, stderr and resize.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;

use super::channels::{self, Wire, channel, parse_size};
use super::spdy::{self, Stream, StreamWriter};
use crate::runtime::{Session, StreamRequest};

const PROTOCOL_HEADER: &str = "x-stream-protocol-version";
/// How long a client may take to open its streams.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// Answers with 101 if one of `known` is among the protocols that the client offers; `serve` gets the connection.
pub(super) fn switch<F, S>(request: Request, known: &[&'static str], serve: S) -> Response
where
    S: FnOnce(TokioIo<hyper::upgrade::Upgraded>) -> F + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let offered: Vec<&str> = request
        .headers()
        .get_all(PROTOCOL_HEADER)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(',').map(str::trim))
        .collect();
    let chosen = known.iter().find(|p| offered.contains(*p));
    let Some(chosen) = chosen.copied() else {
        let message = format!(
            "unable to negotiate protocol: client supports {offered:?}, server accepts {known:?}"
        );
        return (StatusCode::FORBIDDEN, message).into_response();
    };
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(connection) => serve(TokioIo::new(connection)).await,
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

/// Upgrades an exec or attach request.
pub(super) fn upgrade<F>(request: Request, wanted: StreamRequest, open: F) -> Response
where
    F: Future<Output = Result<Session, String>> + Send + 'static,
{
    switch(
        request,
        &["v5.channel.k8s.io", "v4.channel.k8s.io"],
        move |connection| async move {
            let (accept, accepted) = mpsc::channel(8);
            let session = carry(accepted, wanted, open);
            // The session ends with its connection, the connection once the session has said all.
            tokio::select! {
                result = spdy::serve(connection, accept) => if let Err(error) = result {
                    tracing::debug!(%error, "SPDY session");
                },
                () = session => {}
            }
        },
    )
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
    ) -> Option<Self> {
        let mut streams = Self::default();
        loop {
            let complete = streams.error.is_some()
                && (streams.stdin.is_some() || !wanted.stdin)
                && (streams.stdout.is_some() || !wanted.stdout)
                && (streams.stderr.is_some() || !wanted.stderr)
                && (streams.resize.is_some() || !wanted.tty);
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

async fn carry<F>(mut accepted: mpsc::Receiver<Stream>, wanted: StreamRequest, open: F)
where
    F: Future<Output = Result<Session, String>>,
{
    let collected =
        tokio::time::timeout(OPEN_TIMEOUT, Streams::collect(&mut accepted, &wanted)).await;
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
    let session = async move {
        match open.await {
            Ok(session) => channels::carry(session, Wire { stdin, resize, out }).await,
            Err(message) => {
                let status = channels::failure(&message).to_string();
                // Fails only if the client left.
                let _left = out.send((channel::ERROR, Bytes::from(status))).await;
            }
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
