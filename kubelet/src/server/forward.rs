//! `/portForward/<namespace>/<pod>`: connections from the client into the pod's network.
//!
//! For every connection the client opens two SPDY streams with the same `requestID`: one for data, one for an error
//! text. The SPDY connection is either the upgraded request itself or is carried in the messages of a WebSocket.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use knarr_engine::types::{SandboxId, SandboxState};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::spdy::{self, Stream};
use super::{Refusal, Server, spdy_session};
use crate::runtime::{Runtime, chain};

const PROTOCOL: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

pub(super) async fn handle(
    State(server): State<Server>,
    Path((namespace, pod)): Path<(String, String)>,
    request: Request,
) -> Response {
    let sandbox = match sandbox(&server, &namespace, &pod).await {
        Ok(sandbox) => sandbox,
        Err(refusal) => return refusal.into_response(),
    };
    let runtime = server.ctx.runtime.clone();
    let upgrade = request
        .headers()
        .get(header::UPGRADE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    if upgrade.eq_ignore_ascii_case("SPDY/3.1") {
        return spdy_session::switch(request, &[PROTOCOL], move |connection| {
            serve(connection, runtime, sandbox)
        });
    }
    let (mut parts, _) = request.into_parts();
    match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
        Ok(upgrade) => upgrade
            .protocols([TUNNEL])
            .on_upgrade(move |socket| tunnel(socket, runtime, sandbox)),
        Err(rejection) => rejection.into_response(),
    }
}

async fn sandbox(server: &Server, namespace: &str, pod: &str) -> Result<SandboxId, Refusal> {
    let object = server.pods.find(namespace, pod).ok_or_else(|| {
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
    let (accept, mut accepted) = mpsc::channel::<Stream>(16);
    let pairing = async move {
        let mut waiting: HashMap<String, Stream> = HashMap::new();
        // Dropped with the connection, and all that goes through it.
        let mut connections = JoinSet::new();
        while let Some(stream) = accepted.recv().await {
            while connections.try_join_next().is_some() {}
            let request = stream.headers.get("requestid").cloned().unwrap_or_default();
            match waiting.remove(&request) {
                None => {
                    waiting.insert(request, stream);
                }
                Some(other) => {
                    let is_error =
                        |s: &Stream| s.headers.get("streamtype").is_some_and(|t| t == "error");
                    let (data, error) = if is_error(&stream) {
                        (other, stream)
                    } else {
                        (stream, other)
                    };
                    connections.spawn(forward(runtime.clone(), sandbox.clone(), data, error));
                }
            }
        }
        std::future::pending::<()>().await;
    };
    // Everything ends with the connection.
    tokio::select! {
        result = spdy::serve(connection, accept) => if let Err(error) = result {
            tracing::debug!(%error, "port-forward connection");
        },
        () = pairing => {}
    }
}

async fn forward(runtime: Arc<dyn Runtime>, sandbox: SandboxId, data: Stream, error: Stream) {
    let port = data.headers.get("port").and_then(|p| p.parse::<u16>().ok());
    let result = match port {
        Some(port) => copy(runtime, sandbox, port, data).await,
        None => Err("the stream names no port".to_owned()),
    };
    if let Err(message) = result {
        let _gone = error.writer.write(Bytes::from(message)).await;
    }
    let _gone = error.writer.close().await;
}

async fn copy(
    runtime: Arc<dyn Runtime>,
    sandbox: SandboxId,
    port: u16,
    data: Stream,
) -> Result<(), String> {
    let Stream {
        data: mut input,
        writer,
        ..
    } = data;
    let connected = runtime.port_forward(&sandbox, port).await;
    let connection = match connected {
        Ok(connection) => connection,
        Err(error) => {
            let _gone = writer.close().await;
            return Err(format!(
                "error forwarding port {port} to pod {}: failed to connect to localhost:{port} inside namespace: {}",
                sandbox.0,
                chain(&error)
            ));
        }
    };
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
                    if writer
                        .write(Bytes::copy_from_slice(&buffer[..count]))
                        .await
                        .is_err()
                    {
                        return Ok(());
                    }
                }
                Err(error) => return Err(format!("error forwarding port {port}: {error}")),
            }
        }
    };
    let mut to_pod = std::pin::pin!(to_pod);
    let result = {
        let mut from_pod = std::pin::pin!(from_pod);
        // The client may finish first and still read; when the pod has finished, all is said.
        tokio::select! {
            result = &mut from_pod => result,
            () = &mut to_pod => from_pod.await,
        }
    };
    let _gone = writer.close().await;
    result
}
