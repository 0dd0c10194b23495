//! What goes on to the kubelet, seen with a kubelet of the test's own: the URL, the client certificate, the bytes.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use knarr_api::pki::Purpose;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::{PODS, Server, pod};
use crate::wire::{Listening, listen};

/// So many lines of a log are answered with so many bytes, more than the server's own answers have uncompressed.
const LARGE: usize = 200_000;

/// A kubelet that answers with the URL it was asked, and after an upgrade with what it reads.
async fn kubelet(server: &Server) -> u16 {
    let purpose = Purpose::Server {
        name: "system:node:n".into(),
        groups: vec!["system:nodes".into()],
        hosts: vec!["127.0.0.1".into()],
    };
    let identity = server
        .pki
        .identity("kubelet", &purpose)
        .expect("an identity");
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(
            CertificateDer::from_pem_slice(server.pki.ca_cert_pem().as_bytes())
                .expect("a certificate"),
        )
        .expect("a CA");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        provider.clone(),
    )
    .build()
    .expect("a verifier");
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![
                CertificateDer::from_pem_slice(identity.cert_pem.as_bytes())
                    .expect("a certificate"),
            ],
            PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).expect("a key"),
        )
        .expect("TLS");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("its address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else {
                continue;
            };
            let service = hyper::service::service_fn(answer);
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection.with_upgrades());
        }
    });
    port
}

async fn answer(
    mut request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let url = request.uri().to_string();
    if !request.headers().contains_key("upgrade") {
        assert!(
            !request.headers().contains_key("authorization"),
            "no credentials go on"
        );
        let size = url.rsplit_once("tailLines=").map(|(_, lines)| lines);
        let size: usize = size.and_then(|lines| lines.parse().ok()).unwrap_or(0);
        return Ok(Response::new(Full::new(match size {
            LARGE => vec![b'x'; LARGE].into(),
            _ => url.into(),
        })));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.expect("an upgrade"));
        stream
            .write_all(format!("{url}\n").as_bytes())
            .await
            .expect("a write");
        let (mut reader, mut writer) = tokio::io::split(stream);
        // The echo ends with the test's connection, in whatever way.
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    });
    Ok(Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .body(Full::default())
        .expect("a response"))
}

async fn running_pod() -> Listening {
    let listening = listen().await;
    let server = &listening.server;
    server.service_account().await;
    let port = kubelet(server).await;
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n" }, "status": {
        "addresses": [{ "type": "Hostname", "address": "n" }, { "type": "InternalIP", "address": "127.0.0.1" }],
        "daemonEndpoints": { "kubeletEndpoint": { "Port": port } } } });
    server.post("/api/v1/nodes", &node).await.expect(201);
    let mut pod = pod("p");
    pod["spec"]["nodeName"] = "n".into();
    server.post(PODS, &pod).await.expect(201);
    listening
}

#[tokio::test]
async fn logs_come_from_the_kubelet() {
    let listening = running_pod().await;
    let server = &listening.server;
    let log = server
        .get(&format!("{PODS}/p/log?tailLines=5&follow=true"))
        .await;
    assert_eq!(
        (log.code, log.body),
        (
            200,
            json!("/containerLogs/default/p/c?follow=true&tailLines=5")
        )
    );
    server
        .get(&format!("{PODS}/p/log?tailLines=-1"))
        .await
        .refused(422, "Invalid");
    let message = server
        .get(&format!("{PODS}/p/log?container=x"))
        .await
        .refused(400, "BadRequest");
    assert_eq!(message, "container x is not valid for pod p");
    // The only container is meant, whatever init containers there are.
    let mut with_init = pod("with-init");
    with_init["spec"]["nodeName"] = "n".into();
    with_init["spec"]["initContainers"] = json!([{ "name": "first", "image": "x" }]);
    server.post(PODS, &with_init).await.expect(201);
    let log = server.get(&format!("{PODS}/with-init/log")).await;
    assert_eq!(log.body, json!("/containerLogs/default/with-init/c?"));
    let proxied = server.get("/api/v1/nodes/n/proxy/stats/summary?x=1").await;
    assert_eq!(proxied.body, json!("/stats/summary?x=1"));
}

#[tokio::test]
async fn what_a_kubelet_answers_is_never_compressed_on_the_way() {
    let listening = running_pod().await;
    let admin = listening.identity("admin", "system:masters");
    for path in [
        format!("{PODS}/p/log?tailLines={LARGE}"),
        format!("/api/v1/nodes/n/proxy/x?tailLines={LARGE}"),
    ] {
        let stream = listening.connect(Some(&admin), b"http/1.1").await;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .expect("HTTP");
        tokio::spawn(connection);
        let request = Request::get(&path)
            .header("host", "x")
            .header("accept-encoding", "gzip")
            .body(Full::<Bytes>::default())
            .expect("a request");
        let answer = sender.send_request(request).await.expect("an answer");
        assert!(!answer.headers().contains_key("content-encoding"), "{path}");
        let body = answer.into_body().collect().await.expect("a whole body");
        assert_eq!(body.to_bytes().len(), LARGE, "{path}");
    }
    listening.end().await;
}

#[tokio::test]
async fn exec_passes_an_upgraded_connection_through() {
    let listening = running_pod().await;
    let admin = listening.identity("admin", "system:masters");
    let stream = listening.connect(Some(&admin), b"http/1.1").await;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .expect("HTTP");
    tokio::spawn(connection.with_upgrades());
    let request = Request::get(format!(
        "{PODS}/p/exec?command=sh&command=-c+x&stdin=true&stdout=true&tty=false"
    ))
    .header("host", "x")
    .header("connection", "Upgrade")
    .header("upgrade", "websocket")
    .body(Full::<Bytes>::default())
    .expect("a request");
    let mut response = sender.send_request(request).await.expect("an answer");
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        panic!("{:?}", response.into_body().collect().await);
    }
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.expect("an upgrade"));
    let expected = "/exec/default/p/c?input=1&output=1&command=sh&command=-c%20x\n";
    let mut url = vec![0; expected.len()];
    stream.read_exact(&mut url).await.expect("the URL");
    assert_eq!(String::from_utf8_lossy(&url), expected);
    stream.write_all(b"hello").await.expect("a write");
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).await.expect("the echo");
    assert_eq!(&echo, b"hello");
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_named() {
    let listening = running_pod().await;
    let server = &listening.server;
    let unreachable =
        json!({ "status": { "daemonEndpoints": { "kubeletEndpoint": { "Port": 1 } } } });
    server
        .merge("/api/v1/nodes/n/status", &unreachable)
        .await
        .expect(200);
    let message = server
        .get(&format!("{PODS}/p/log"))
        .await
        .refused(500, "InternalError");
    assert!(
        message.starts_with("error dialing backend: dial tcp 127.0.0.1:1: "),
        "{message}"
    );
}

/// Asks for a WebSocket; returns the answer's head, and the connection behind it.
async fn websocket(
    listening: &Listening,
    path: &str,
    protocol: &str,
) -> (
    String,
    impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + use<>,
) {
    let admin = listening.identity("admin", "system:masters");
    let mut stream = listening.connect(Some(&admin), b"http/1.1").await;
    let protocol = match protocol {
        "" => String::new(),
        name => format!("sec-websocket-protocol: {name}\r\n"),
    };
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{protocol}\r\n"
    );
    stream
        .write_all(request.as_bytes())
        .await
        .expect("a request");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a head"));
    }
    (
        String::from_utf8(head).expect("text").to_lowercase(),
        stream,
    )
}

/// All messages up to the server's close: whether each is text, and what it holds.
async fn messages(mut stream: impl tokio::io::AsyncRead + Unpin) -> Vec<(bool, Vec<u8>)> {
    let mut all = Vec::new();
    loop {
        let kind = stream.read_u8().await.expect("a frame");
        let length = usize::from(stream.read_u8().await.expect("a length"));
        assert!(length < 126, "a short frame, not masked");
        let mut data = vec![0; length];
        stream.read_exact(&mut data).await.expect("its data");
        match kind {
            0x81 => all.push((true, data)),
            0x82 => all.push((false, data)),
            0x88 => {
                assert_eq!(data, 1000u16.to_be_bytes());
                return all;
            }
            other => panic!("a frame of kind {other:x}"),
        }
    }
}

#[tokio::test]
async fn logs_come_over_a_websocket() {
    let listening = running_pod().await;
    let path = format!("{PODS}/p/log?container=c");
    let url = b"/containerLogs/default/p/c?".to_vec();
    for (protocol, text) in [
        ("", false),
        ("binary.k8s.io", false),
        ("base64.binary.k8s.io", true),
    ] {
        let (head, stream) = websocket(&listening, &path, protocol).await;
        assert!(head.starts_with("http/1.1 101"), "{head}");
        assert!(head.contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
        let named = format!("sec-websocket-protocol: {protocol}\r\n");
        assert_eq!(head.contains(&named), !protocol.is_empty(), "{head}");
        let data = match text {
            true => b"L2NvbnRhaW5lckxvZ3MvZGVmYXVsdC9wL2M/".to_vec(),
            false => url.clone(),
        };
        assert_eq!(messages(stream).await, [(text, Vec::new()), (text, data)]);
    }
    let (head, _) = websocket(&listening, &path, "v9").await;
    assert!(head.starts_with("http/1.1 403"), "{head}");
    let (head, _) = websocket(&listening, &format!("{PODS}/p/log?container=x"), "").await;
    assert!(head.starts_with("http/1.1 400"), "{head}");
    // One that nothing has run in yet has an empty log, here too.
    listening
        .server
        .post(PODS, &pod("unscheduled"))
        .await
        .expect(201);
    let (head, stream) = websocket(&listening, &format!("{PODS}/unscheduled/log"), "").await;
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert_eq!(messages(stream).await, [(false, Vec::new())]);
}

#[tokio::test]
async fn streams_need_an_upgrade_and_the_kubelet_decides_about_ended_pods() {
    let listening = running_pod().await;
    let server = &listening.server;
    for path in [
        "exec?command=sh&stdout=true",
        "attach?stdout=true",
        "portforward?ports=80",
    ] {
        let message = server
            .get(&format!("{PODS}/p/{path}"))
            .await
            .refused(400, "BadRequest");
        assert_eq!(message, "Upgrade request required", "{path}");
    }
    let ended = json!({ "status": { "phase": "Succeeded" } });
    server
        .merge(&format!("{PODS}/p/status"), &ended)
        .await
        .expect(200);
    let (head, _) = websocket(&listening, &format!("{PODS}/p/attach?stdout=true"), "").await;
    assert!(head.starts_with("http/1.1 101"), "{head}");
}

#[tokio::test]
async fn proxies_take_names_with_schemes_and_ports() {
    let listening = running_pod().await;
    let server = &listening.server;
    let get = async |path: &str| server.get(&format!("/api/v1/{path}")).await;
    let pods = "namespaces/default/pods";
    let services = "namespaces/default/services";
    for (path, message) in [
        (
            format!("{pods}/ftp:p:80/proxy/"),
            "invalid pod request \"ftp:p:80\"",
        ),
        (
            format!("{pods}/a:b:c:d/proxy/"),
            "invalid pod request \"a:b:c:d\"",
        ),
        (
            format!("{services}/:s:/proxy/x:y"),
            "services \"s\" not found",
        ),
        (
            format!("{services}/x:s:1/proxy/"),
            "invalid service request \"x:s:1\"",
        ),
        (format!("{pods}/p/proxy/"), "address not allowed"),
    ] {
        let answer = get(&path).await;
        assert_eq!(answer.body["message"], message, "{path}");
    }
    let loopback = json!({ "status": { "podIP": "127.0.0.1", "podIPs": [{ "ip": "127.0.0.1" }] } });
    server
        .merge(&format!("{PODS}/p/status"), &loopback)
        .await
        .expect(200);
    let message = get(&format!("{pods}/p/proxy/"))
        .await
        .refused(400, "BadRequest");
    assert_eq!(message, "address not allowed");

    let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s" },
        "spec": { "ports": [{ "name": "web", "port": 80 }, { "name": "other", "port": 81 }] } });
    server
        .post("/api/v1/namespaces/default/services", &service)
        .await
        .expect(201);
    // Written by hand: an address that no pod of the namespace has.
    let slice = json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": "s-1", "labels": { "kubernetes.io/service-name": "s" } },
        "ports": [{ "name": "web", "port": 8080, "protocol": "TCP" }],
        "endpoints": [{ "addresses": ["192.0.2.1"], "targetRef": { "kind": "Pod", "namespace": "default", "name": "p" } }] });
    for (path, message) in [
        ("s:82/proxy/", "no service port 82 found for service \"s\""),
        ("s:80/proxy/", "no endpoints available for service \"s\""),
        (
            "https:s:web/proxy/",
            "no endpoints available for service \"s\"",
        ),
    ] {
        let told = get(&format!("{services}/{path}"))
            .await
            .refused(503, "ServiceUnavailable");
        assert_eq!(told, message, "{path}");
    }
    server
        .post(
            "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
            &slice,
        )
        .await
        .expect(201);
    for id in ["s:80", "https:s:web", "s:other", "s:none", "s"] {
        let told = get(&format!("{services}/{id}/proxy/"))
            .await
            .refused(503, "ServiceUnavailable");
        assert_eq!(told, format!("no endpoints available for service {id:?}"));
    }
}

#[tokio::test]
async fn the_root_of_a_proxy_ends_with_a_slash() {
    let listening = running_pod().await;
    let admin = listening.identity("admin", "system:masters");
    let mut stream = listening.connect(Some(&admin), b"http/1.1").await;
    let request = "GET /api/v1/nodes/n/proxy?x=1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream
        .write_all(request.as_bytes())
        .await
        .expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 301"), "{answer}");
    assert!(
        answer.contains("location: /api/v1/nodes/n/proxy/?x=1\r\n"),
        "{answer}"
    );
}
