//! Sessions over WebSocket: `v5.channel.k8s.io` and `v4.channel.k8s.io`.
//!
//! Every binary message is one byte that names the stream, then its data.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use tokio::sync::{mpsc, oneshot};

use super::channels::{self, Wire, channel, parse_size};

/// The subprotocols that are spoken, the best first.
pub(super) const PROTOCOLS: [&str; 3] =
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io"];
/// How often a silent client is asked whether it is there.
const PING: Duration = Duration::from_secs(30);
/// How long output waits for the first sign that the client reads.
///
/// A pong comes within a round trip; a client that never answers pings still gets its output.
const LISTENING: Duration = Duration::from_secs(1);

/// How long the client's answer to our close frame is waited for.
const FAREWELL: Duration = Duration::from_secs(5);

/// Carries a session that `open` makes once the socket is there.
pub(super) async fn carry<F>(socket: WebSocket, open: F)
where
    F: Future<Output = Result<crate::runtime::Session, String>>,
{
    let v5 = socket
        .protocol()
        .is_some_and(|p| p.as_bytes() == b"v5.channel.k8s.io");
    let (mut sink, mut stream) = socket.split();
    let (stdin, stdin_end) = mpsc::channel(16);
    let (resize, resize_end) = mpsc::channel(16);
    let (out, mut out_end) = mpsc::channel::<(u8, Bytes)>(16);
    let (listening, client_listens) = oneshot::channel();
    let reading = async move {
        let mut stdin = Some(stdin);
        let mut resize = Some(resize);
        let mut listening = Some(listening);
        while let Some(Ok(message)) = stream.next().await {
            if let Some(listening) = listening.take() {
                // Fails only if output no longer waits.
                let _late = listening.send(());
            }
            let data = match message {
                Message::Binary(data) => data,
                Message::Text(text) => Bytes::from(text),
                Message::Close(_) => break,
                Message::Ping(_) | Message::Pong(_) => continue,
            };
            let Some((&number, payload)) = data.split_first() else {
                continue;
            };
            match number {
                channel::STDIN if !payload.is_empty() => {
                    if let Some(sender) = &stdin
                        && sender.send(data.slice(1..)).await.is_err()
                    {
                        stdin = None;
                    }
                }
                channel::RESIZE => {
                    if let Some(sender) = &resize
                        && let Some(size) = parse_size(payload)
                        && sender.send(size).await.is_err()
                    {
                        // The process has ended; its status is still on the way to the client.
                        resize = None;
                    }
                }
                channel::CLOSE if v5 && payload.first() == Some(&channel::STDIN) => stdin = None,
                _ => {}
            }
        }
    };
    let writing = async move {
        // client-go before 1.34 starts to read a moment before it knows its streams, and discards what comes for one that it
        // does not know yet. (The API server makes such a kubectl use SPDY; others are not told by their name.) A pong shows
        // that it reads, and is a round trip old by the time of the first output.
        if sink.send(Message::Ping(Bytes::new())).await.is_err() {
            return;
        }
        let _silent = tokio::time::timeout(LISTENING, client_listens).await;
        let mut ping = tokio::time::interval(PING);
        ping.reset();
        loop {
            // A message that is not taken stays in its queue.
            let message = tokio::select! {
                next = out_end.recv() => match next {
                    Some((number, data)) => {
                        let mut frame = BytesMut::with_capacity(data.len() + 1);
                        frame.extend_from_slice(&[number]);
                        frame.extend_from_slice(&data);
                        Message::Binary(frame.freeze())
                    }
                    None => break,
                },
                _ = ping.tick() => Message::Ping(Bytes::new()),
            };
            if sink.send(message).await.is_err() {
                return;
            }
        }
        // 1000: normal closure (RFC 6455, 7.4.1). A client that has left already needs no farewell.
        let _left = sink
            .send(Message::Close(Some(CloseFrame {
                code: 1000,
                reason: "".into(),
            })))
            .await;
    };
    let session = async move {
        match open.await {
            Ok(session) => {
                channels::carry(
                    session,
                    Wire {
                        stdin: stdin_end,
                        resize: resize_end,
                        out,
                    },
                )
                .await
            }
            Err(message) => {
                let status = channels::failure(&message).to_string();
                // Fails only if the client left.
                let _left = out.send((channel::ERROR, Bytes::from(status))).await;
            }
        }
    };
    let serve = async {
        tokio::join!(session, writing);
    };
    let mut reading = std::pin::pin!(reading);
    // A client that leaves ends the session; its process ends when its streams do.
    tokio::select! {
        () = serve => {}
        () = &mut reading => return,
    }
    // A socket that is closed with unread data resets the connection, and what was sent last, the status, may never arrive. So
    // the client's farewell is waited for (RFC 6455, 7.1.1).
    let _slow = tokio::time::timeout(FAREWELL, reading).await;
}
