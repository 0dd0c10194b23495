//! Sessions over WebSocket: `v5.channel.k8s.io` and the versions before it.
//!
//! Every message is one byte that names the stream, then its data. In the `base64` variants both are text: the byte is a digit,
//! the data is base64. The first version, which is also that of a client that names none, says how the session ended in a text;
//! later ones in a `Status`. Only the fifth can end the client's input without ending the session.
//!
//! Source: kubernetes, k8s.io/apimachinery/pkg/util/httpstream/wsstream and pkg/kubelet/cri/streaming/remotecommand/websocket.go.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::channels::{self, Ending, Kind, Wire, channel, parse_size};

/// The subprotocols that are spoken, the best first.
pub(super) const PROTOCOLS: [&str; 6] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
];

/// How a message holds a stream's number and data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    Binary,
    Base64,
}

impl Codec {
    /// That of a subprotocol.
    pub(super) fn of(protocol: &str) -> Self {
        if protocol.contains("base64.") {
            Self::Base64
        } else {
            Self::Binary
        }
    }

    /// A message with data of a stream.
    pub(super) fn encode(self, number: u8, data: &[u8]) -> Message {
        match self {
            Self::Binary => {
                let mut frame = BytesMut::with_capacity(data.len() + 1);
                frame.extend_from_slice(&[number]);
                frame.extend_from_slice(data);
                Message::Binary(frame.freeze())
            }
            Self::Base64 => {
                let mut text = String::with_capacity(data.len() / 3 * 4 + 5);
                text.push(char::from(b'0' + number));
                BASE64.encode_string(data, &mut text);
                Message::Text(text.into())
            }
        }
    }

    /// The stream and the data of a message; `None` if it names no stream, or what is to be base64 is none.
    pub(super) fn decode(self, message: Bytes) -> Option<(u8, Bytes)> {
        let number = *message.first()?;
        match self {
            Self::Binary => Some((number, message.slice(1..))),
            Self::Base64 => {
                let data = BASE64.decode(&message[1..]).ok()?;
                Some((number.checked_sub(b'0')?, data.into()))
            }
        }
    }
}

/// How often a silent client is asked whether it is there.
const PING: Duration = Duration::from_secs(30);
/// How long output waits for the first sign that the client reads.
///
/// A pong comes within a round trip; a client that never answers pings still gets its output.
const LISTENING: Duration = Duration::from_secs(1);

/// How long the client's answer to our close frame is waited for.
pub(super) const FAREWELL: Duration = Duration::from_secs(5);

/// Carries a session that `open` makes once the socket is there. `(stdout, stderr)` says what the client reads.
pub(super) async fn carry<F>(
    socket: WebSocket,
    protocol: &'static str,
    (stdout, stderr): (bool, bool),
    kind: Kind,
    open: F,
) where
    F: Future<Output = Result<crate::runtime::Session, String>>,
{
    let v5 = protocol == "v5.channel.k8s.io";
    let codec = Codec::of(protocol);
    let ending = if v5 || protocol.starts_with("v4.") {
        Ending::Status
    } else {
        Ending::Text
    };
    let (sink, mut stream) = socket.split();
    let (stdin, stdin_end) = mpsc::channel(16);
    let (resize, resize_end) = mpsc::channel(16);
    let (out, out_end) = mpsc::channel::<(u8, Bytes)>(16);
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
            let Some((number, payload)) = codec.decode(data) else {
                continue;
            };
            match number {
                channel::STDIN if !payload.is_empty() => {
                    if let Some(sender) = &stdin
                        && sender.send(payload).await.is_err()
                    {
                        stdin = None;
                    }
                }
                channel::RESIZE => {
                    if let Some(sender) = &resize
                        && let Some(size) = parse_size(&payload)
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
    // An empty message on the first stream that the client reads says that the connection is there.
    let hello = match (stdout, stderr) {
        (true, _) => channel::STDOUT,
        (_, true) => channel::STDERR,
        _ => channel::ERROR,
    };
    let hellos = vec![codec.encode(hello, b"")];
    let writing = write(sink, codec, hellos, Some(client_listens), out_end);
    let abandoned = CancellationToken::new();
    let left = abandoned.clone();
    let session = async move {
        let wire = Wire {
            stdin: stdin_end,
            resize: resize_end,
            out: out.clone(),
        };
        let Some(outcome) = channels::carry(open, kind, wire).await else {
            return left.cancel();
        };
        if let Some(told) = outcome.told(ending) {
            // Fails only if the client left.
            let _left = out.send((channel::ERROR, told)).await;
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
        () = abandoned.cancelled() => return,
    }
    // A socket that is closed with unread data resets the connection, and what was sent last, the status, may never arrive. So
    // the client's farewell is waited for (RFC 6455, 7.1.1).
    let _slow = tokio::time::timeout(FAREWELL, reading).await;
}

/// Writes messages until all that have something to say have said it, or the client has left. `hellos` come first; what follows
/// waits a moment for `listens`.
pub(super) async fn write(
    mut sink: SplitSink<WebSocket, Message>,
    codec: Codec,
    hellos: Vec<Message>,
    listens: Option<oneshot::Receiver<()>>,
    mut queue: mpsc::Receiver<(u8, Bytes)>,
) {
    for hello in hellos {
        if sink.send(hello).await.is_err() {
            return;
        }
    }
    if let Some(listens) = listens {
        // client-go before 1.34 starts to read a moment before it knows its streams, and discards what comes for one that it
        // does not know yet. (The API server makes such a kubectl use SPDY; others are not told by their name.) A pong shows
        // that it reads, and is a round trip old by the time of the first output.
        if sink.send(Message::Ping(Bytes::new())).await.is_err() {
            return;
        }
        let _silent = tokio::time::timeout(LISTENING, listens).await;
    }
    let mut ping = tokio::time::interval(PING);
    ping.reset();
    loop {
        // A message that is not taken stays in its queue.
        let message = tokio::select! {
            next = queue.recv() => match next {
                Some((number, data)) => codec.encode(number, &data),
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
}
