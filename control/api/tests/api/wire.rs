//! Over a real socket: TLS, client certificates, bearer tokens, both versions of HTTP.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use base64::Engine as _;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use knarr_api::pki::clock::TlsTime;
use knarr_api::pki::{Identity, Pki, Purpose};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::support::{MAPS, Server};

pub struct Listening {
    pub server: Server,
    address: std::net::SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

pub async fn listen() -> Listening {
    listen_with(Server::start().await).await
}

pub async fn listen_with(server: Server) -> Listening {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let stop = CancellationToken::new();
    let (api, token) = (server.api.clone(), stop.clone());
    let task = tokio::spawn(async move { api.serve(listener, token).await.expect("it serves") });
    Listening {
        server,
        address,
        stop,
        task,
    }
}

impl Listening {
    pub async fn connect(
        &self,
        identity: Option<&Identity>,
        alpn: &[u8],
    ) -> tokio_rustls::client::TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(self.server.pki.ca_cert_pem().as_bytes())
            .expect("a certificate");
        roots.add(ca).expect("a CA");
        let builder = rustls::ClientConfig::builder_with_details(
            Arc::new(rustls::crypto::ring::default_provider()),
            Arc::new(TlsTime(self.server.pki.clock())),
        )
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let chain = vec![
                    CertificateDer::from_pem_slice(identity.cert_pem.as_bytes())
                        .expect("a certificate"),
                ];
                let key =
                    PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).expect("a key");
                builder
                    .with_client_auth_cert(chain, key)
                    .expect("an identity")
            }
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect(self.address)
            .await
            .expect("a connection");
        let name = ServerName::try_from("127.0.0.1").expect("a name");
        tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .expect("TLS")
    }

    pub async fn get(&self, identity: Option<&Identity>, path: &str, bearer: &str) -> (u16, Value) {
        let stream = self.connect(identity, b"http/1.1").await;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .expect("HTTP");
        tokio::spawn(connection);
        let mut request = Request::get(path).header("host", "x");
        if !bearer.is_empty() {
            request = request.header("authorization", format!("Bearer {bearer}"));
        }
        let request = request.body(Full::<Bytes>::default()).expect("a request");
        let response = sender.send_request(request).await.expect("an answer");
        let code = response.status().as_u16();
        let body = response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    pub async fn end(self) {
        self.stop.cancel();
        self.task.await.expect("it ends");
    }

    pub fn identity(&self, user: &str, group: &str) -> Identity {
        let purpose = Purpose::Client {
            user: user.to_owned(),
            groups: vec![group.to_owned()],
        };
        self.server
            .pki
            .identity(&user.replace(':', "-"), &purpose)
            .expect("an identity")
    }
}

#[tokio::test]
async fn a_certificate_names_the_user() {
    let listening = listen().await;
    let node = listening.identity("system:node:n", "system:nodes");
    let (code, list) = listening.get(Some(&node), "/api/v1/nodes", "").await;
    assert_eq!((code, &list["kind"]), (200, &json!("NodeList")));
    listening.stop.cancel();
    listening.task.await.expect("it ends");
}

#[tokio::test]
async fn tokens_and_certificates_of_clients_end_by_the_clock_of_the_keys() {
    let (start, days) = (OffsetDateTime::now_utc(), Arc::new(AtomicI64::new(0)));
    let passed = days.clone();
    let clock = move || start + time::Duration::days(passed.load(Ordering::SeqCst));
    let keys = |dir: &Path| Pki::open_with_clock(dir, Arc::new(clock)).expect("keys");
    let listening = listen_with(Server::start_on(Arc::new, keys).await).await;
    listening.server.service_account().await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let asked = json!({ "spec": { "audiences": [], "expirationSeconds": 90_000 } });
    let reply = listening.server.post(path, &asked).await.expect(201);
    let token = reply["status"]["token"].as_str().expect("a token");
    let admin = listening.identity("admin", "system:masters");
    for (day, token_is_good) in [(0, 200), (1, 200), (2, 401), (300, 401)] {
        days.store(day, Ordering::SeqCst);
        listening.server.api.certificates().check();
        assert_eq!(
            listening.get(None, "/apis", token).await.0,
            token_is_good,
            "day {day}"
        );
        assert_eq!(
            listening.get(Some(&admin), MAPS, "").await.0,
            200,
            "day {day}"
        );
    }
    days.store(366, Ordering::SeqCst);
    listening.server.api.certificates().check();
    // With TLS 1.3 the client hears of it when it reads.
    let stream = listening.connect(Some(&admin), b"http/1.1").await;
    let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = connected.expect("HTTP");
    let driven = tokio::spawn(connection);
    let request = Request::get(MAPS).header("host", "x");
    let request = request.body(Full::<Bytes>::default()).expect("a request");
    let refused = sender.send_request(request).await;
    assert!(refused.is_err(), "{refused:?}");
    let why = driven.await.expect("no panic").expect_err("it broke off");
    let why = format!("{why:?}");
    assert!(why.contains("CertificateExpired"), "{why}");
    listening.end().await;
}

#[tokio::test]
async fn nobody_is_admitted_without_an_identity_except_to_health() {
    let listening = listen().await;
    for path in ["/healthz", "/readyz", "/livez/ping", "/version", "/cacerts"] {
        assert_eq!(listening.get(None, path, "").await.0, 200, "{path}");
    }
    for path in [MAPS, "/api", "/metrics", "/openapi/v2", "/nothing"] {
        let (code, status) = listening.get(None, path, "").await;
        assert_eq!(
            (code, &status["reason"]),
            (403, &json!("Forbidden")),
            "{path}"
        );
        let message = status["message"].as_str().expect("a message");
        assert!(
            message.contains("User \"system:anonymous\" cannot"),
            "{message}"
        );
    }
    assert_eq!(
        listening.get(None, MAPS, "abcdef.0123456789abcdef").await.0,
        401
    );
}

#[tokio::test]
async fn tokens_of_service_accounts_and_nodes_admit() {
    let listening = listen().await;
    let server = &listening.server;
    server.service_account().await;
    server.allow("system:serviceaccounts", "view").await;
    let tokens = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let token = server
        .post(tokens, &json!({ "spec": {} }))
        .await
        .expect(201)["status"]["token"]
        .clone();
    assert_eq!(
        listening
            .get(None, MAPS, token.as_str().unwrap_or_default())
            .await
            .0,
        200
    );
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": { "name": "bootstrap-token-abcdef" }, "data": {
            "token-id": encode("abcdef"), "token-secret": encode("0123456789abcdef"),
            "usage-bootstrap-authentication": encode("true"),
            "auth-extra-groups": encode("system:bootstrappers:kubeadm:default-node-token"),
    } });
    server
        .post("/api/v1/namespaces/kube-system/secrets", &secret)
        .await
        .expect(201);
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    assert_eq!(
        listening
            .get(None, requests, "abcdef.0123456789abcdef")
            .await
            .0,
        200
    );
    assert_eq!(
        listening.get(None, MAPS, "abcdef.0123456789abcdef").await.0,
        403
    );
    assert_eq!(
        listening
            .get(None, requests, "abcdef.0123456789abcdee")
            .await
            .0,
        401
    );
}

#[tokio::test]
async fn http_2_serves_many_requests_at_once_and_a_watch_ends_with_the_server() {
    let listening = listen().await;
    let admin = listening.identity("admin", "system:masters");
    let stream = listening.connect(Some(&admin), b"h2").await;
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
    tokio::spawn(connection);
    let send = |path: String| {
        let mut sender = sender.clone();
        async move {
            let request = Request::get(path)
                .body(Full::<Bytes>::default())
                .expect("a request");
            sender.send_request(request).await.expect("an answer")
        }
    };
    let requests = (0..50).map(|_| send(format!("https://127.0.0.1{MAPS}")));
    for response in futures::future::join_all(requests).await {
        assert_eq!(response.status(), 200);
    }
    let watch = send(format!("https://127.0.0.1{MAPS}?watch=1")).await;
    listening.stop.cancel();
    let rest = tokio::time::timeout(crate::support::DEADLINE, watch.into_body().collect()).await;
    rest.expect("the watch ends with the server")
        .expect("and ends properly");
    listening.task.await.expect("it ends");
}
