//! Port-forward.

use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::{Connection, Node, S, Spdy, Told, W, decode, encode, next};

/// A server in the pod: echoes in capitals, says goodbye when the client has finished.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                while let Ok(count) = stream.read(&mut buffer).await {
                    let answer = match count {
                        0 => b"BYE".to_vec(),
                        _ => buffer[..count].to_ascii_uppercase(),
                    };
                    // A client that has gone needs no answer.
                    if stream.write_all(&answer).await.is_err() || count == 0 {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// A port that nobody listens at.
async fn closed_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("an address").port()
}

#[tokio::test]
async fn ports_are_forwarded_over_a_plain_websocket() {
    let node = Node::running(&["wait"]).await;
    let (port, closed) = (echo().await, closed_port().await);
    for protocol in [W(""), W("v4.channel.k8s.io"), W("v4.base64.channel.k8s.io")] {
        for query in [
            format!("port={port}&port={closed}"),
            format!("port={port},{closed}"),
        ] {
            let opened = node
                .open(protocol, &format!("/portForward/ns/p?{query}"))
                .await;
            let Ok(Connection::WebSocket(mut socket)) = opened else {
                panic!("{protocol:?} {query}: refused");
            };
            let mut heard: [Vec<u8>; 4] = Default::default();
            let mut hear = async |socket: &mut WebSocketStream<TcpStream>,
                                  done: &dyn Fn(&[Vec<u8>; 4]) -> bool| {
                while !done(&heard) {
                    let message = next(socket)
                        .await
                        .unwrap_or_else(|| panic!("{protocol:?}: {heard:?}"));
                    if let Some((channel, data)) = decode(protocol, &message) {
                        heard[usize::from(channel)].extend_from_slice(&data);
                    }
                }
                heard.clone()
            };
            let message = encode(protocol, 0, b"ping");
            socket.send(message).await.expect("sent");
            let all = hear(&mut socket, &|heard| {
                heard[0].len() >= 6 && heard[3].len() > 2
            })
            .await;
            let prefixed = |port: u16, text: &str| [&port.to_le_bytes(), text.as_bytes()].concat();
            assert_eq!(all[0], prefixed(port, "PING"), "{protocol:?} {query}");
            assert_eq!(all[1], prefixed(port, ""), "{protocol:?} {query}");
            assert_eq!(all[2], prefixed(closed, ""), "{protocol:?} {query}");
            assert_eq!(all[3][..2], closed.to_le_bytes(), "{protocol:?} {query}");
            let words = String::from_utf8_lossy(&all[3][2..]).into_owned();
            let begin = format!(
                "error forwarding port {closed} to pod sandbox-0, uid : failed to connect to localhost:{closed} inside namespace \"sandbox-0\": "
            );
            assert!(words.starts_with(&begin), "{words}");
        }
        for (query, words) in [
            ("", "query parameter \"port\" is required"),
            ("port=", "query parameter \"port\" cannot be empty"),
            ("port=0", "port \"0\" must be > 0"),
            ("port=65536", "unable to parse \"65536\" as a port"),
            ("port=1,x", "unable to parse \"1,x\" as a port"),
        ] {
            let refused = node
                .open(protocol, &format!("/portForward/ns/p?{query}"))
                .await;
            assert_eq!(
                refused.err(),
                Some((400, words.to_owned())),
                "{protocol:?} {query}"
            );
        }
    }
}

/// Port-forward over SPDY, whatever carries it.
async fn forward_over_spdy<C>(mut spdy: Spdy<C>, port: u16, closed: u16)
where
    C: tokio::io::AsyncRead + tokio::io::AsyncWrite,
{
    async fn open<C>(spdy: &mut Spdy<C>, port: u16, id: Option<&str>) -> (u32, u32)
    where
        C: tokio::io::AsyncRead + tokio::io::AsyncWrite,
    {
        let port = port.to_string();
        let mut headers = vec![("streamType", "error"), ("port", &*port)];
        headers.extend(id.map(|id| ("requestID", id)));
        let error = spdy.open(&headers).await;
        headers[0].1 = "data";
        (spdy.open(&headers).await, error)
    }
    async fn hear<C>(spdy: &mut Spdy<C>, wanted: u32, bytes: usize) -> (String, bool)
    where
        C: tokio::io::AsyncRead + tokio::io::AsyncWrite,
    {
        let mut all = Vec::new();
        loop {
            match spdy.next().await {
                Some(Told::Data { id, data, fin }) if id == wanted => {
                    all.extend_from_slice(&data);
                    if fin || all.len() >= bytes {
                        return (String::from_utf8_lossy(&all).into_owned(), fin);
                    }
                }
                Some(_) => {}
                None => panic!("stream {wanted} got {all:?}"),
            }
        }
    }
    // With and without a request id; half closed by the client, to the end.
    for id in [Some("0"), None] {
        let (data, _) = open(&mut spdy, port, id).await;
        spdy.write(data, b"ping", false).await;
        assert_eq!(
            hear(&mut spdy, data, 4).await,
            ("PING".to_owned(), false),
            "{id:?}"
        );
        spdy.write(data, b"", true).await;
        assert_eq!(
            hear(&mut spdy, data, 100).await,
            ("BYE".to_owned(), true),
            "{id:?}"
        );
    }
    // One that is given up does not hold the others.
    let (first, _) = open(&mut spdy, port, Some("1")).await;
    let (second, _) = open(&mut spdy, port, Some("2")).await;
    spdy.write(first, b"a", false).await;
    assert_eq!(hear(&mut spdy, first, 1).await.0, "A");
    spdy.reset(first).await;
    spdy.write(second, b"b", false).await;
    assert_eq!(hear(&mut spdy, second, 1).await.0, "B");
    // Nobody listens.
    let (_, error) = open(&mut spdy, closed, Some("3")).await;
    let (words, fin) = hear(&mut spdy, error, usize::MAX).await;
    let begin = format!("error forwarding port {closed} to pod sandbox-0, uid : failed to connect");
    assert!(fin && words.starts_with(&begin), "{words}");
    // Streams that are none.
    for headers in [
        &[("streamType", "data")][..],
        &[("streamType", "data"), ("port", "0")],
        &[("streamType", "odd"), ("port", "80")],
        &[("port", "80")],
    ] {
        let refused = spdy.open(headers).await;
        loop {
            match spdy.next().await {
                Some(Told::Reset { id }) if id == refused => break,
                Some(_) => {}
                None => panic!("{headers:?}"),
            }
        }
    }
}

#[tokio::test]
async fn ports_are_forwarded_over_spdy() {
    let node = Node::running(&["wait"]).await;
    let (port, closed) = (echo().await, closed_port().await);
    let opened = node
        .open(S("portforward.k8s.io"), "/portForward/ns/p")
        .await;
    let Ok(Connection::Spdy(spdy)) = opened else {
        panic!("refused");
    };
    forward_over_spdy(spdy, port, closed).await;
}

#[tokio::test]
async fn ports_are_forwarded_over_spdy_in_a_websocket() {
    let node = Node::running(&["wait"]).await;
    let (port, closed) = (echo().await, closed_port().await);
    let tunnel = W("SPDY/3.1+portforward.k8s.io");
    let opened = node.open(tunnel, "/portForward/ns/p").await;
    let Ok(Connection::WebSocket(socket)) = opened else {
        panic!("refused");
    };
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (mut from_client, mut to_client) = tokio::io::split(far);
    let (mut sink, mut stream) = socket.split();
    tokio::spawn(async move {
        let mut buffer = vec![0; 1024];
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            let message = Message::binary(buffer[..count].to_vec());
            sink.send(message).await.expect("sent");
        }
    });
    tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            if let Message::Binary(data) = message {
                to_client.write_all(&data).await.expect("the client reads");
            }
        }
    });
    forward_over_spdy(Spdy::new(near), port, closed).await;
}
