//! What a client cannot take from the others: seats, connections, memory.

use std::io::Read as _;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use knarr_api::ApiServerConfig;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{DEADLINE, MAPS, Server, config_map};
use crate::wire::{Listening, listen_with};

/// The head of an answer, from a client that speaks HTTP/1.1 by hand.
async fn head(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut text = Vec::new();
    let read = async {
        while !text.ends_with(b"\r\n\r\n") {
            text.push(stream.read_u8().await.expect("an answer"));
        }
    };
    let read = tokio::time::timeout(DEADLINE, read).await;
    read.expect("an answer in time");
    String::from_utf8(text).expect("text")
}

async fn post_head(
    listening: &Listening,
    user: &str,
    group: &str,
    length: usize,
) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    let identity = listening.identity(user, group);
    let mut stream = listening.connect(Some(&identity), b"http/1.1").await;
    let head = format!(
        "POST {MAPS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("a request");
    stream
}

#[tokio::test]
async fn who_comes_when_all_seats_are_taken_is_told_to_come_back() {
    let config = ApiServerConfig {
        max_changing: 1,
        ..ApiServerConfig::default()
    };
    let listening = listen_with(Server::start_with(config).await).await;
    listening.server.allow("devs", "edit").await;
    let body = config_map("slow").to_string();
    // It sits there as long as its body has not come.
    let mut slow = post_head(&listening, "jane", "devs", body.len()).await;
    let refused = async {
        loop {
            let body = config_map("quick").to_string();
            let mut quick = post_head(&listening, "joe", "devs", body.len()).await;
            quick.write_all(body.as_bytes()).await.expect("a body");
            let head = head(&mut quick).await;
            if head.starts_with("HTTP/1.1 429 ") {
                return head;
            }
        }
    };
    let head_of_refused = tokio::time::timeout(DEADLINE, refused).await;
    let refused = head_of_refused.expect("the slow one takes its seat");
    assert!(refused.contains("retry-after: 1\r\n"), "{refused}");
    // What reads has seats of its own, and an administrator needs none.
    let jane = listening.identity("jane", "devs");
    assert_eq!(listening.get(Some(&jane), MAPS, "").await.0, 200);
    let admin = config_map("of-admin").to_string();
    let mut stream = post_head(&listening, "admin", "system:masters", admin.len()).await;
    stream.write_all(admin.as_bytes()).await.expect("a body");
    let created = head(&mut stream).await;
    assert!(created.starts_with("HTTP/1.1 201 "), "{created}");
    slow.write_all(body.as_bytes()).await.expect("a body");
    let created = head(&mut slow).await;
    assert!(created.starts_with("HTTP/1.1 201 "), "{created}");
    let metrics = listening.server.get("/metrics").await;
    let text = metrics.body.as_str().expect("text").to_owned();
    assert!(
        text.contains("apiserver_current_inflight_requests{request_kind=\"mutating\"} 0"),
        "{text}"
    );
    assert!(text.contains("apiserver_dropped_requests_total{request_kind=\"mutating\"}"));
    listening.end().await;
}

#[tokio::test]
async fn there_are_so_many_connections_and_the_next_one_waits() {
    let config = ApiServerConfig {
        max_connections: 1,
        ..ApiServerConfig::default()
    };
    let listening = listen_with(Server::start_with(config).await).await;
    let admin = listening.identity("admin", "system:masters");
    let first = listening.connect(Some(&admin), b"http/1.1").await;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(first))
        .await
        .expect("HTTP");
    let first = tokio::spawn(connection);
    let mut second = Box::pin(listening.connect(Some(&admin), b"http/1.1"));
    for _ in 0..20 {
        let request = Request::get(MAPS)
            .header("host", "x")
            .body(Full::<Bytes>::default())
            .expect("a request");
        let answer = tokio::select! {
            answer = sender.send_request(request) => answer.expect("an answer"),
            _ = &mut second => panic!("the second is let in beside the first"),
        };
        assert_eq!(answer.status(), 200);
        answer.into_body().collect().await.expect("a body");
    }
    drop(sender);
    first.await.expect("it ends").expect("in peace");
    let second = tokio::time::timeout(DEADLINE, second).await;
    drop(second.expect("it is let in when the first has gone"));
    listening.end().await;
}

/// Nobody needs an identity to connect: places must not be had for nothing.
#[tokio::test]
async fn who_connects_and_asks_for_nothing_makes_room() {
    let config = ApiServerConfig {
        max_connections: 3,
        head_timeout: Duration::from_millis(500),
        ..ApiServerConfig::default()
    };
    let listening = listen_with(Server::start_with(config).await).await;
    let mut silent = listening.connect(None, b"http/1.1").await;
    let mut in_the_preface = listening.connect(None, b"h2").await;
    in_the_preface.write_all(b"PRI").await.expect("a write");
    let mut silent_http_2 = listening.connect(None, b"h2").await;
    let admin = listening.identity("admin", "system:masters");
    let served = tokio::time::timeout(DEADLINE, listening.get(Some(&admin), MAPS, "")).await;
    assert_eq!(served.expect("there is room").0, 200);
    for stream in [&mut silent, &mut in_the_preface, &mut silent_http_2] {
        let closed = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut Vec::new())).await;
        // With or without a farewell.
        let _ = closed.expect("it is closed");
    }
    // A connection that has asked stays, however long its watch says nothing.
    let stream = listening.connect(Some(&admin), b"h2").await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP");
    tokio::spawn(connection);
    let request = Request::get(format!("https://x{MAPS}?watch=true"))
        .body(Full::<Bytes>::default())
        .expect("a request");
    let watch = sender.send_request(request).await.expect("an answer");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let created = listening.server.post(MAPS, &config_map("late")).await;
    created.expect(201);
    let mut events = watch.into_body();
    let event = tokio::time::timeout(DEADLINE, events.frame()).await;
    event
        .expect("in time")
        .expect("an event")
        .expect("no error");
    listening.end().await;
}

#[tokio::test]
async fn documents_travel_compressed_if_the_client_likes() {
    let server = Server::start().await;
    for path in ["/openapi/v3", "/openapi/v3/api/v1", "/openapi/v2"] {
        let ask = async |name: &str, value: &str| {
            let request = Request::get(path)
                .header(name, value)
                .body(Full::<Bytes>::default())
                .expect("a request");
            server.raw(request).await
        };
        let plain = ask("accept", "application/json").await;
        let tag = plain.headers()["etag"].clone();
        let text = plain
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        let packed = ask("accept-encoding", "gzip").await;
        assert_eq!(packed.headers()["content-encoding"], "gzip", "{path}");
        assert_eq!(packed.headers()["etag"], tag);
        let bytes = packed
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(&*bytes)
            .read_to_end(&mut unpacked)
            .expect("gzip");
        assert!(unpacked == text, "{path}");
        let same = ask("if-none-match", tag.to_str().expect("text")).await;
        assert_eq!(same.status(), 304, "{path}");
    }
    server
        .get("/openapi/v3/apis/nothing/v1")
        .await
        .refused(404, "NotFound");
}

/// A large list comes whole, however it travels.
#[tokio::test]
async fn a_large_list_is_compressed_while_it_is_sent() {
    let server = Server::start().await;
    for index in 0..20 {
        let mut map = config_map(&format!("m-{index:02}"));
        map["data"] = json!({ "text": "many words ".repeat(2000) });
        server.post(MAPS, &map).await.expect(201);
    }
    let plain = server.get(MAPS).await.expect(200);
    let request = Request::get(MAPS)
        .header("accept-encoding", "gzip")
        .body(Full::<Bytes>::default())
        .expect("a request");
    let packed = server.raw(request).await;
    assert_eq!(packed.headers()["content-encoding"], "gzip");
    let bytes = packed
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    assert!(bytes.len() < 100_000, "{}", bytes.len());
    let list: serde_json::Value =
        serde_json::from_reader(flate2::read::GzDecoder::new(&*bytes)).expect("JSON in gzip");
    assert_eq!(list["items"], plain["items"]);
}

/// What a watch holds is let go when its client does not take it, whatever the watch's own time-out.
#[tokio::test]
async fn a_watch_that_nobody_reads_ends() {
    let server = Server::start().await;
    server.config_maps(1).await;
    let request = Request::get(format!("{MAPS}?watch=true&timeoutSeconds=3600"))
        .body(Full::<Bytes>::default())
        .expect("a request");
    let mut watch = server.raw(request).await.into_body();
    watch.frame().await.expect("an event").expect("no error");
    let metrics = async || {
        let metrics = server.get("/metrics").await;
        metrics.body.as_str().expect("text").to_owned()
    };
    assert!(
        metrics()
            .await
            .contains("\napiserver_longrunning_requests 1\n")
    );
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(180)).await;
    tokio::time::resume();
    let gone = async {
        while !metrics()
            .await
            .contains("\napiserver_longrunning_requests 0\n")
        {
            tokio::task::yield_now().await;
        }
    };
    let gone = tokio::time::timeout(DEADLINE, gone).await;
    gone.expect("it holds nothing any more");
    let end = watch.frame().await.expect("an end that is told");
    assert!(end.is_err());
}

/// The loops of controllers are told of where kube-controller-manager tells of them, and close nothing.
#[tokio::test]
async fn other_parts_are_told_of_at_healthz_alone() {
    let server = Server::start().await;
    server.api.tell_of(|| {
        let trouble = Err("panicked: on purpose".to_owned());
        vec![
            ("deployment".to_owned(), Ok(())),
            ("node".to_owned(), trouble),
        ]
    });
    let text = |reply: crate::support::Reply, code: u16| {
        let body = reply.expect(code);
        body.as_str().unwrap_or_default().to_owned()
    };
    let all = text(server.get("/healthz?verbose").await, 500);
    assert!(
        all.contains("[+]deployment ok\n") && all.contains("[-]node failed: reason withheld\n"),
        "{all}"
    );
    let rest = text(server.get("/healthz?verbose&exclude=node").await, 200);
    assert!(rest.contains("[+]node excluded: ok\n"), "{rest}");
    assert_eq!(text(server.get("/healthz/deployment").await, 200), "ok");
    let told = text(server.get("/healthz/node").await, 500);
    assert!(!told.contains("on purpose"), "{told}");
    for endpoint in ["/readyz", "/livez"] {
        text(server.get(endpoint).await, 200);
        server.get(&format!("{endpoint}/node")).await.expect(404);
    }
}
