//! Exec and attach.

use std::time::{Duration, SystemTime};

use futures::SinkExt as _;
use knarr_engine::types::ContainerConfig;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{
    ALL, Client, Connection, DEADLINE, Node, S, Told, W, decode, encode, next, open_streams,
    success, words,
};

#[tokio::test]
async fn exec_tells_output_and_end() {
    let node = Node::running(&["wait"]).await;
    for protocol in ALL {
        let client = Client::reading();
        let run = async |command: &[&str]| {
            let path = client.path("exec", "c", command);
            node.talk(protocol, &path, &client).await
        };
        let heard = run(&["say", "out", "err", "0"]).await;
        assert_eq!(heard.text(), ("out", "err"), "{protocol:?}");
        heard.check(protocol, &success());

        let heard = run(&["say", "out", "", "7"]).await;
        assert_eq!(heard.text(), ("out", ""), "{protocol:?}");
        heard.check(protocol, &json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": "command terminated with non-zero exit code: error executing command [say out  7], exit code 7",
            "details": {"causes": [{"reason": "ExitCode", "message": "7"}]},
        }));

        let heard = run(&["absent"]).await;
        assert_eq!(heard.text(), ("", ""), "{protocol:?}");
        let why = "error executing command in container: exec: \"absent\": executable file not found in $PATH";
        heard.check(
            protocol,
            &json!({
                "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
                "message": format!("Internal error occurred: {why}"),
                "details": {"causes": [{"message": why}]},
            }),
        );
    }
}

#[tokio::test]
async fn exec_reads_input_to_its_end() {
    let node = Node::running(&["wait"]).await;
    for protocol in ALL {
        let mut client = Client::typing("one\ntwo\n");
        let command: &[&str] = match protocol.closes_input() {
            true => &["cat"],
            false => &["line"],
        };
        client.closes_input = protocol.closes_input();
        let path = client.path("exec", "c", command);
        let heard = node.talk(protocol, &path, &client).await;
        let expected = if protocol.closes_input() {
            "one\ntwo\n"
        } else {
            "one\n"
        };
        assert_eq!(heard.text(), (expected, ""), "{protocol:?}");
        heard.check(protocol, &success());
    }
}

#[tokio::test]
async fn exec_with_a_terminal_has_a_size_and_one_output() {
    let node = Node::running(&["wait"]).await;
    for protocol in ALL {
        let mut client = Client {
            tty: true,
            ..Client::reading()
        };
        let command: &[&str] = match protocol.resizes() {
            true => &["size"],
            false => &["say", "80x24", "", "0"],
        };
        client.size = protocol.resizes().then_some((80, 24));
        let path = client.path("exec", "c", command);
        let heard = node.talk(protocol, &path, &client).await;
        assert_eq!(heard.text(), ("80x24", ""), "{protocol:?}");
        heard.check(protocol, &success());
    }
}

#[tokio::test]
async fn a_slow_client_gets_everything() {
    const MUCH: usize = 8 << 20;
    let much = MUCH.to_string();
    let node = Node::running(&["flood", &much]).await;
    let expected: Vec<u8> = (0..MUCH).map(|n| ((n % (1 << 16)) % 251) as u8).collect();
    for protocol in ALL {
        let client = Client {
            slow: Duration::from_millis(300),
            ..Client::reading()
        };
        for endpoint in ["exec", "attach"] {
            let path = client.path(endpoint, "c", &["flood", &much]);
            let heard = node.talk(protocol, &path, &client).await;
            assert!(
                heard.stdout == expected,
                "{protocol:?} {endpoint}: {}",
                heard.stdout.len()
            );
            heard.check(protocol, &success());
        }
    }
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_session() {
    let node = Node::running(&["wait"]).await;
    for protocol in ALL {
        for endpoint in ["exec", "attach"] {
            node.runtime.input_ended.send_replace(false);
            let client = Client::typing("typed");
            let path = client.path(endpoint, "c", &["wait"]);
            let mut connection = node.open(protocol, &path).await.expect("opened");
            match &mut connection {
                Connection::Spdy(spdy) => {
                    let ids = open_streams(spdy, protocol, &client).await;
                    spdy.write(ids[0], b"typed", false).await;
                    loop {
                        match spdy.next().await.expect("output") {
                            Told::Data { data, .. } if data == "ready" => break,
                            other => assert!(matches!(other, Told::Data { .. })),
                        }
                    }
                }
                Connection::WebSocket(socket) => {
                    let message = encode(protocol, 0, b"typed");
                    socket.send(message).await.expect("sent");
                    let ready = Some((1, b"ready".to_vec()));
                    while decode(protocol, &next(socket).await.expect("output")) != ready {}
                }
            }
            drop(connection);
            let mut ended = node.runtime.input_ended.subscribe();
            tokio::time::timeout(DEADLINE, ended.wait_for(|ended| *ended))
                .await
                .unwrap_or_else(|_| {
                    panic!("{protocol:?} {endpoint}: the process still has its input")
                })
                .expect("the node lives");
        }
    }
}

#[tokio::test]
async fn attach_tells_success_whatever_the_exit_code() {
    for protocol in ALL {
        let node = Node::running(&["say", "out", "err", "3"]).await;
        let client = Client::reading();
        let path = client.path("attach", "c", &[]);
        let heard = node.talk(protocol, &path, &client).await;
        assert_eq!(heard.text(), ("out", "err"), "{protocol:?}");
        heard.check(protocol, &success());
    }
}

#[tokio::test]
async fn the_end_of_input_ends_an_attach_or_the_containers_input() {
    for protocol in ALL.into_iter().filter(|protocol| protocol.closes_input()) {
        let client = Client {
            closes_input: true,
            ..Client::typing("typed")
        };
        let path = client.path("attach", "c", &[]);
        // The container's input ends with its first client's; its output goes on to its own end.
        let node = Node::start(ContainerConfig {
            command: words(&["cat"]),
            stdin: true,
            stdin_once: true,
            ..ContainerConfig::default()
        })
        .await;
        let heard = node.talk(protocol, &path, &client).await;
        assert_eq!(heard.text(), ("typed", ""), "{protocol:?}");
        heard.check(protocol, &success());
        assert!(*node.runtime.input_ended.borrow(), "{protocol:?}");
        // The session ends, the container does not.
        let node = Node::start(ContainerConfig {
            command: words(&["wait"]),
            stdin: true,
            ..ContainerConfig::default()
        })
        .await;
        let heard = node.talk(protocol, &path, &client).await;
        heard.check(protocol, &success());
    }
}

#[tokio::test]
async fn attach_to_a_container_that_has_just_ended_tells_its_output_once() {
    for protocol in ALL {
        let mut node = Node::running(&["say", "out", "err", "3"]).await;
        node.agent = "kubectl/v1.35.2 (linux/amd64) kubernetes/0123456";
        let log = "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:00Z stderr F bad\n2026-01-01T00:00:00Z stdout P two\n";
        std::fs::write(node.dir.path().join("0.log"), log).expect("written");
        node.runtime.end("c", 3);
        let client = Client::reading();
        let path = client.path("attach", "c", &[]);
        let heard = node.talk(protocol, &path, &client).await;
        assert_eq!(heard.text(), ("one\ntwo", "bad\n"), "{protocol:?}");
        heard.check(protocol, &success());
        // Not for ever, and nothing can be executed in it.
        let refused = node
            .open(protocol, &client.path("exec", "c", &["cat"]))
            .await;
        let words = "container not found (\"c\")".to_owned();
        assert_eq!(refused.err(), Some((500, words.clone())), "{protocol:?}");
        node.runtime
            .ended_at("c", SystemTime::now() - Duration::from_secs(60));
        let refused = node.open(protocol, &path).await;
        assert_eq!(refused.err(), Some((500, words.clone())), "{protocol:?}");
        // Nor for who has read the log before.
        node.runtime.ended_at("c", SystemTime::now());
        node.agent = "kubectl/v1.37.0 (linux/amd64) kubernetes/0123456";
        let refused = node.open(protocol, &path).await;
        assert_eq!(refused.err(), Some((500, words)), "{protocol:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_streamed_is_refused_before_the_upgrade() {
    let node = Node::running(&["wait"]).await;
    let client = Client::reading();
    let not_found = |name| (500, format!("container not found ({name:?})"));
    for protocol in ALL {
        for endpoint in ["exec", "attach"] {
            for container in ["new", "other"] {
                let path = client.path(endpoint, container, &["cat"]);
                let refused = node.open(protocol, &path).await.err();
                assert_eq!(
                    refused,
                    Some(not_found(container)),
                    "{protocol:?} {endpoint}"
                );
            }
        }
        let nothing = Client::default().path("exec", "c", &["cat"]);
        let refused = node.open(protocol, &nothing).await.err();
        let words = "you must specify at least 1 of stdin, stdout, stderr";
        assert_eq!(refused, Some((400, words.to_owned())), "{protocol:?}");
        let nothing = client.path("exec", "c", &[]);
        let refused = node.open(protocol, &nothing).await.err();
        let words = "you must specify at least 1 command for the container";
        assert_eq!(refused, Some((400, words.to_owned())), "{protocol:?}");
    }
    let path = client.path("exec", "c", &["cat"]);
    let (code, words) = node.open(S("v9"), &path).await.err().expect("refused");
    let begin =
        "unable to upgrade: unable to negotiate protocol: client supports [v9], server accepts [";
    assert!(code == 403 && words.starts_with(begin), "{code} {words}");
    let (code, words) = node.open(W("v9"), &path).await.err().expect("refused");
    let begin = "requested protocol(s) are not supported: [v9]; supports [";
    assert!(code == 403 && words.starts_with(begin), "{code} {words}");
    let forward = "/portForward/ns/p?port=1";
    let (code, _) = node
        .open(W("v5.channel.k8s.io"), forward)
        .await
        .err()
        .expect("refused");
    assert_eq!(code, 403);
    for path in [&path, "/portForward/ns/p"] {
        let url = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let mut stream = TcpStream::connect(node.address).await.expect("connected");
        stream.write_all(url.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        assert!(answer.ends_with("Upgrade request required"), "{answer}");
    }
}
