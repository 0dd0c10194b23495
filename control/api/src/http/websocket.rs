//! A body over a WebSocket: each piece a message, binary or base64. What the client sends is ignored.
//!
//! Source: kubernetes, k8s.io/apimachinery/pkg/util/httpstream/wsstream (`Reader`), which serves `pods/log` so.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role};

use super::body::ResponseBody;
use super::respond::Answer;
use crate::server::Inner;
use crate::status::ApiError;

/// The subprotocols; a client that names none means the first.
const PROTOCOLS: [&str; 3] = ["", "binary.k8s.io", "base64.binary.k8s.io"];
/// The most data of one message.
const PIECE: usize = 32 * 1024;
/// How long the client's answer to our close frame is waited for.
const FAREWELL: Duration = Duration::from_secs(5);

/// A request for a WebSocket.
pub struct Socket {
    upgrade: OnUpgrade,
    accept: String,
    protocol: &'static str,
}

/// Whether a request asks for a WebSocket; its headers for that are taken out, so that they do not go on to others.
///
/// # Errors
///
/// 400 if the handshake is none, 403 for subprotocols that are not known.
pub fn asked(parts: &mut Parts) -> Result<Option<Socket>, ApiError> {
    let asks = parts
        .headers
        .get(header::UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if !asks {
        return Ok(None);
    }
    let protocol = choose(&parts.headers)?;
    let bad = |message: &str| ApiError::bad_request(message);
    if parts.headers.get(header::SEC_WEBSOCKET_VERSION) != Some(&HeaderValue::from_static("13")) {
        return Err(bad("missing or bad WebSocket Version"));
    }
    let key = parts
        .headers
        .get(header::SEC_WEBSOCKET_KEY)
        .ok_or_else(|| bad("missing Sec-WebSocket-Key"))?;
    let accept = derive_accept_key(key.as_bytes());
    let upgrade = parts
        .extensions
        .remove()
        .ok_or_else(|| bad("Upgrade request required"))?;
    for name in [
        header::CONNECTION,
        header::UPGRADE,
        header::SEC_WEBSOCKET_KEY,
        header::SEC_WEBSOCKET_VERSION,
        header::SEC_WEBSOCKET_PROTOCOL,
        header::SEC_WEBSOCKET_EXTENSIONS,
    ] {
        parts.headers.remove(name);
    }
    Ok(Some(Socket {
        upgrade,
        accept,
        protocol,
    }))
}

/// The first of the client's subprotocols that is known.
fn choose(headers: &HeaderMap) -> Result<&'static str, ApiError> {
    let offered: Vec<&str> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    if offered.is_empty() {
        return Ok("");
    }
    let known = |offered: &&str| PROTOCOLS.into_iter().find(|known| known == offered);
    offered.iter().find_map(known).ok_or_else(|| {
        let message = format!(
            "requested protocol(s) are not supported: [{}]; supports [{}]",
            offered.join(" "),
            PROTOCOLS.join(" ")
        );
        ApiError::new(403, "Forbidden", message)
    })
}

impl Socket {
    /// Switches, and sends the body.
    pub fn stream(self, server: &Arc<Inner>, body: ResponseBody) -> Answer {
        let guard = server.metrics.long_running();
        let stop = server.stop.clone();
        let (upgrade, protocol) = (self.upgrade, self.protocol);
        tokio::spawn(async move {
            let _guard = guard;
            match upgrade.await {
                Ok(connection) => {
                    let connection = TokioIo::new(connection);
                    // A client whose server stops sees its connection end.
                    let send = send(connection, protocol, body);
                    stop.run_until_cancelled(send).await;
                }
                Err(error) => tracing::debug!(%error, "upgrade to a WebSocket"),
            }
        });
        let mut response = Response::new(super::body::full(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        let accept = HeaderValue::from_str(&self.accept).expect("base64 is plain ASCII");
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        if !protocol.is_empty() {
            let protocol = HeaderValue::from_static(protocol);
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        response
    }
}

async fn send<C>(connection: C, protocol: &str, mut body: ResponseBody)
where
    C: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let socket = WebSocketStream::from_raw_socket(connection, Role::Server, None).await;
    let (mut sink, mut stream) = socket.split();
    let message = |data: Bytes| match protocol {
        "base64.binary.k8s.io" => Message::text(BASE64.encode(&data)),
        _ => Message::binary(data),
    };
    let sending = async {
        // An empty message says that the connection is there.
        sink.send(message(Bytes::new())).await?;
        while let Some(frame) = body.frame().await {
            let mut data = match frame.map(http_body::Frame::into_data) {
                Ok(Ok(data)) => data,
                Ok(Err(_trailers)) => continue,
                Err(error) => {
                    tracing::debug!(error, "a body that a WebSocket carries broke off");
                    break;
                }
            };
            while !data.is_empty() {
                let piece = data.split_to(data.len().min(PIECE));
                sink.send(message(piece)).await?;
            }
        }
        let farewell = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        sink.send(Message::Close(Some(farewell))).await
    };
    let leaving = async {
        while let Some(Ok(message)) = stream.next().await {
            if message.is_close() {
                return;
            }
        }
    };
    let mut leaving = std::pin::pin!(leaving);
    tokio::select! {
        sent = sending => if let Err(error) = sent {
            return tracing::debug!(%error, "a WebSocket");
        },
        () = &mut leaving => return,
    }
    // Closed with unread data, the connection would be reset, and the end might never arrive.
    let _slow = tokio::time::timeout(FAREWELL, leaving).await;
}
