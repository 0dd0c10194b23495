//! `/portForward/<namespace>/<pod>`: connections from the client into the pod's network.
//!
//! For every connection the client opens two SPDY streams with the same `requestID`: one for data, one for an error
//! text. The SPDY connection is either the upgraded request itself or is carried in the messages of a WebSocket. Over a plain
//! WebSocket, the ports are in the query, and each has one connection and two channels: data and error, which both begin with
//! the port's number (16 bits, little endian).
//!
//! Source: kubernetes, pkg/kubelet/cri/streaming/portforward.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use knarr_engine::types::{SandboxId, SandboxState};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::query::Query;
use super::spdy::{self, Stream, StreamWriter};
use super::upgrade::{self, Upgrade};
use super::websocket::{self, Codec};
use super::{Refusal, Server, spdy_session};
use crate::runtime::{Runtime, chain};

const PROTOCOL: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// The subprotocols of a WebSocket. A client that names none means the fourth version.
const PROTOCOLS: [&str; 4] = [TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""];
/// How long a client may take to open the second stream of a connection.
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);
/// The most ports of one WebSocket: the numbers of their channels must be a byte, and with base64 a printable one.
const MAX_PORTS: (usize, usize) = (127, 39);

pub(super) async fn handle(
    State(server): State<Server>,
    Path((namespace, pod)): Path<(String, String)>,
    request: Request,
) -> Response {
    let asked = upgrade::of(request.headers());
    let Some(asked) = asked else {
        return upgrade::required().into_response();
    };
    let sandbox = match sandbox(&server, &namespace, &pod).await {
        Ok(sandbox) => sandbox,
        Err(refusal) => return refusal.into_response(),
    };
    let runtime = server.ctx.runtime.clone();
    if asked == Upgrade::Spdy {
        return spdy_session::switch(request, &[PROTOCOL], move |connection, _| {
            serve(connection, runtime, sandbox)
        });
    }
    let query = Query::parse(request.uri().query());
    let (mut parts, _) = request.into_parts();
    let (socket, protocol) = match upgrade::websocket(&mut parts, &PROTOCOLS).await {
        Ok(chosen) => chosen,
        Err(refusal) => return refusal.into_response(),
    };
    if protocol == TUNNEL {
        return socket.on_upgrade(move |socket| tunnel(socket, runtime, sandbox));
    }
    let codec = Codec::of(protocol);
    match ports(&query, codec) {
        Ok(ports) => {
            socket.on_upgrade(move |socket| channels(socket, codec, runtime, sandbox, ports))
        }
        Err(message) => Refusal(StatusCode::BAD_REQUEST, message).into_response(),
    }
}

/// The ports that a plain WebSocket is for: several in one value, or several values.
fn ports(query: &Query, codec: Codec) -> Result<Vec<u16>, String> {
    let values: Vec<String> = ["port", "ports"]
        .iter()
        .flat_map(|n| query.all(n))
        .collect();
    if values.is_empty() {
        return Err("query parameter \"port\" is required".to_owned());
    }
    let mut ports = Vec::new();
    for value in &values {
        if value.is_empty() {
            return Err("query parameter \"port\" cannot be empty".to_owned());
        }
        for text in value.split(',') {
            ports.push(port(text).map_err(|error| error.of(value))?);
        }
    }
    let most = match codec {
        Codec::Binary => MAX_PORTS.0,
        Codec::Base64 => MAX_PORTS.1,
    };
    if ports.len() > most {
        return Err(format!(
            "at most {most} ports can be forwarded over one WebSocket"
        ));
    }
    Ok(ports)
}

/// What is wrong with a port.
enum BadPort {
    NoNumber,
    Zero,
}

impl BadPort {
    fn of(self, text: &str) -> String {
        match self {
            Self::NoNumber => format!("unable to parse {text:?} as a port"),
            Self::Zero => format!("port {text:?} must be > 0"),
        }
    }
}

fn port(text: &str) -> Result<u16, BadPort> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(0) => Err(BadPort::Zero),
        Ok(port) if digits => Ok(port),
        _ => Err(BadPort::NoNumber),
    }
}

async fn sandbox(server: &Server, namespace: &str, pod: &str) -> Result<SandboxId, Refusal> {
    let object = server.pod(namespace, pod).ok_or_else(|| {
        Refusal(
            StatusCode::NOT_FOUND,
            format!("pod \"{pod}\" does not exist"),
        )
    })?;
    let uid = object.metadata.uid.as_deref().unwrap_or_default();
    let all = server
        .ctx
        .runtime
        .list_sandboxes()
        .await
        .map_err(|e| Refusal(StatusCode::INTERNAL_SERVER_ERROR, chain(&e)))?;
    all.into_iter()
        .find(|s| s.config.uid == uid && s.state == SandboxState::Ready)
        .map(|s| s.id)
        .ok_or_else(|| {
            Refusal(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("pod \"{pod}\" is not running"),
            )
        })
}

/// Carries the connections of a plain WebSocket, until the pod has closed all of them or the client has left.
async fn channels(
    socket: WebSocket,
    codec: Codec,
    runtime: Arc<dyn Runtime>,
    sandbox: SandboxId,
    ports: Vec<u16>,
) {
    let (sink, mut stream) = socket.split();
    let (out, queue) = mpsc::channel(16);
    let mut hellos = Vec::new();
    let mut inputs = Vec::new();
    let mut connections = JoinSet::new();
    for (port, data) in ports.into_iter().zip((0..).step_by(2)) {
        let error = data + 1;
        hellos.extend([data, error].map(|channel| codec.encode(channel, &port.to_le_bytes())));
        let (sender, input) = mpsc::channel(64);
        inputs.push(Some(sender));
        let end = |channel| Output::Channel {
            channel,
            out: out.clone(),
        };
        connections.spawn(forward(
            runtime.clone(),
            sandbox.clone(),
            port,
            Ends {
                input,
                data: end(data),
                error: end(error),
                reset: CancellationToken::new(),
            },
        ));
    }
    drop(out);
    let reading = async move {
        while let Some(Ok(message)) = stream.next().await {
            let data = match message {
                Message::Binary(data) => data,
                Message::Text(text) => Bytes::from(text),
                Message::Close(_) => break,
                Message::Ping(_) | Message::Pong(_) => continue,
            };
            let Some((channel, payload)) = codec.decode(data) else {
                continue;
            };
            // Odd channels are for errors, which the client has none to tell of.
            let input = inputs.get_mut(usize::from(channel) / 2);
            let Some(input) = input.filter(|_| channel % 2 == 0 && !payload.is_empty()) else {
                continue;
            };
            if let Some(sender) = input
                && sender.send(payload).await.is_err()
            {
                *input = None;
            }
        }
    };
    let writing = websocket::write(sink, codec, hellos, None, queue);
    let mut reading = std::pin::pin!(reading);
    tokio::select! {
        () = writing => {}
        // What it had open is closed with the tasks.
        () = &mut reading => return,
    }
    let _slow = tokio::time::timeout(websocket::FAREWELL, reading).await;
}

/// Carries SPDY in WebSocket messages.
async fn tunnel(socket: WebSocket, runtime: Arc<dyn Runtime>, sandbox: SandboxId) {
    let (mut sink, mut stream) = socket.split();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (mut far_reader, mut far_writer) = tokio::io::split(far);
    let inwards = async move {
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(data) if far_writer.write_all(&data).await.is_err() => break,
                Message::Close(_) => break,
                _ => {}
            }
        }
        // The other side sees the end of the stream.
        let _closed = far_writer.shutdown().await;
    };
    let outwards = async move {
        let mut buffer = vec![0; 32 * 1024];
        while let Ok(count) = far_reader.read(&mut buffer).await {
            if count == 0
                || sink
                    .send(Message::Binary(Bytes::copy_from_slice(&buffer[..count])))
                    .await
                    .is_err()
            {
                break;
            }
        }
        let _left = sink.send(Message::Close(None)).await;
    };
    tokio::join!(inwards, outwards, serve(near, runtime, sandbox));
}

async fn serve<C>(connection: C, runtime: Arc<dyn Runtime>, sandbox: SandboxId)
where
    C: AsyncRead + AsyncWrite,
{
    let (accept, accepted) = mpsc::channel::<Stream>(16);
    // Everything ends with the connection.
    tokio::select! {
        result = spdy::serve(connection, accept) => if let Err(error) = result {
            tracing::debug!(%error, "port-forward connection");
        },
        () = pair(accepted, runtime, sandbox) => {}
    }
}

/// Which of a connection's two streams one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Data,
    Error,
}

/// Checks a stream's headers; what is wrong with them is told to nobody, as in Kubernetes: the stream is given up.
fn check(stream: &Stream) -> Result<(u16, Half), String> {
    let header = |name: &str| {
        let value = stream.headers.get(name).filter(|value| !value.is_empty());
        value.ok_or_else(|| format!("{name:?} header is required"))
    };
    let text = header("port")?;
    let port = port(text).map_err(|error| error.of(text))?;
    match header("streamtype")?.as_str() {
        "data" => Ok((port, Half::Data)),
        "error" => Ok((port, Half::Error)),
        other => Err(format!("invalid stream type {other:?}")),
    }
}

/// What says which two streams are one connection's.
///
/// A client that names no request opens the error stream first and the data stream next, so their ids are two apart.
fn request(stream: &Stream, half: Half) -> String {
    match (stream.headers.get("requestid"), half) {
        (Some(id), _) if !id.is_empty() => id.clone(),
        (_, Half::Error) => stream.id.to_string(),
        (_, Half::Data) => stream.id.wrapping_sub(2).to_string(),
    }
}

/// Brings together the streams of each connection, and serves it.
async fn pair(mut accepted: mpsc::Receiver<Stream>, runtime: Arc<dyn Runtime>, sandbox: SandboxId) {
    let mut waiting: HashMap<String, (Stream, u16, Half, tokio::time::Instant)> = HashMap::new();
    // Dropped with the connection, and all that goes through it.
    let mut connections = JoinSet::new();
    loop {
        let late = waiting
            .values()
            .map(|(.., since)| *since + PAIR_TIMEOUT)
            .min();
        let timeout = async {
            match late {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        // A stream that is not taken stays in its queue.
        let stream = tokio::select! {
            stream = accepted.recv() => stream,
            () = timeout => {
                give_up(&mut waiting).await;
                continue;
            }
            Some(_) = connections.join_next() => continue,
        };
        let Some(stream) = stream else {
            // The client opens no more; what is open goes on until the connection ends.
            return std::future::pending().await;
        };
        let (port, half) = match check(&stream) {
            Ok(checked) => checked,
            Err(error) => {
                tracing::debug!(error, "a stream is refused");
                let _gone = stream.writer.reset().await;
                continue;
            }
        };
        let id = request(&stream, half);
        let (data, error, port) = match (waiting.remove(&id), half) {
            (None, _) => {
                waiting.insert(id, (stream, port, half, tokio::time::Instant::now()));
                continue;
            }
            (Some((error, _, Half::Error, _)), Half::Data) => (stream, error, port),
            (Some((data, port, Half::Data, _)), Half::Error) => (data, stream, port),
            (Some(first), _) => {
                let which = if half == Half::Data { "data" } else { "error" };
                let message = format!(
                    "error processing stream for request {id}: {which} stream already assigned"
                );
                if first.2 == Half::Error {
                    let _gone = first.0.writer.write(Bytes::from(message)).await;
                }
                let _gone = stream.writer.reset().await;
                waiting.insert(id, first);
                continue;
            }
        };
        let ends = Ends {
            input: data.data,
            data: Output::Stream(data.writer),
            error: Output::Stream(error.writer),
            reset: data.reset,
        };
        connections.spawn(forward(runtime.clone(), sandbox.clone(), port, ends));
    }
}

/// Ends the streams that have waited for their other half for too long.
async fn give_up(waiting: &mut HashMap<String, (Stream, u16, Half, tokio::time::Instant)>) {
    let now = tokio::time::Instant::now();
    let late = waiting.extract_if(|_, (.., since)| *since + PAIR_TIMEOUT <= now);
    for (id, (stream, _, half, _)) in late.collect::<Vec<_>>() {
        let writer = stream.writer;
        if half == Half::Error {
            let message = format!("(request={id}) timed out waiting for streams");
            let _gone = writer.write(Bytes::from(message)).await;
        }
        let _gone = writer.close().await;
    }
}

/// Where bytes for the client go.
enum Output {
    Stream(StreamWriter),
    Channel {
        channel: u8,
        out: mpsc::Sender<(u8, Bytes)>,
    },
}

impl Output {
    /// Fails only if the client has left.
    async fn write(&self, data: Bytes) -> Result<(), spdy::Gone> {
        match self {
            Self::Stream(writer) => writer.write(data).await,
            Self::Channel { channel, out } => {
                out.send((*channel, data)).await.map_err(|_| spdy::Gone)
            }
        }
    }

    /// Says that no more comes, where that can be said.
    async fn close(&self) {
        if let Self::Stream(writer) = self {
            let _gone = writer.close().await;
        }
    }
}

/// The client's ends of one connection.
struct Ends {
    input: mpsc::Receiver<Bytes>,
    data: Output,
    error: Output,
    /// Cancelled when the client gives the connection up.
    reset: CancellationToken,
}

async fn forward(runtime: Arc<dyn Runtime>, sandbox: SandboxId, port: u16, ends: Ends) {
    let error = ends.error;
    let pod = sandbox.0.clone();
    let copied = copy(runtime, sandbox, port, ends.input, &ends.data);
    let result = tokio::select! {
        result = copied => result,
        () = ends.reset.cancelled() => Ok(()),
    };
    if let Err(message) = result {
        let message = format!("error forwarding port {port} to pod {pod}, uid : {message}");
        let _gone = error.write(Bytes::from(message)).await;
    }
    ends.data.close().await;
    error.close().await;
}

async fn copy(
    runtime: Arc<dyn Runtime>,
    sandbox: SandboxId,
    port: u16,
    mut input: mpsc::Receiver<Bytes>,
    output: &Output,
) -> Result<(), String> {
    let connected = runtime.port_forward(&sandbox, port).await;
    let connection = connected.map_err(|error| {
        format!(
            "failed to connect to localhost:{port} inside namespace {:?}: {}",
            sandbox.0,
            chain(&error)
        )
    })?;
    let (mut reader, mut pod) = connection.into_split();
    let to_pod = async move {
        while let Some(bytes) = input.recv().await {
            if pod.write_all(&bytes).await.is_err() {
                return;
            }
        }
        // The pod sees that the client has finished.
        let _closed = pod.shutdown().await;
    };
    let from_pod = async {
        let mut buffer = vec![0; 32 * 1024];
        loop {
            match reader.read(&mut buffer).await {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    let piece = Bytes::copy_from_slice(&buffer[..count]);
                    if output.write(piece).await.is_err() {
                        return Ok(());
                    }
                }
                // One connection that the pod resets is no failure of the forwarding: a client that is told of one ends all.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
    };
    let mut to_pod = std::pin::pin!(to_pod);
    let mut from_pod = std::pin::pin!(from_pod);
    // The client may finish first and still read; when the pod has finished, all is said.
    tokio::select! {
        result = &mut from_pod => result,
        () = &mut to_pod => from_pod.await,
    }
}
