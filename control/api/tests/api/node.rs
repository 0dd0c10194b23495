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
        return Ok(Response::new(Full::new(url.into())));
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
    let proxied = server.get("/api/v1/nodes/n/proxy/stats/summary?x=1").await;
    assert_eq!(proxied.body, json!("/stats/summary?x=1"));
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
