//! A webhook that does as the test says.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Barrier;
use tokio_rustls::TlsAcceptor;

use crate::pki::{Pki, Purpose};

/// What a webhook does.
#[derive(Clone)]
pub enum Behaviour {
    /// Answers with this response, whose uid it fills in.
    Respond(Value),
    /// Answers with a JSON patch.
    Patch(Value),
    /// Answers with this body.
    Body(u16, &'static str),
    /// Answers with a gigabyte.
    Huge,
    /// Sends the caller somewhere else.
    Redirect,
    /// Never answers.
    Hang,
    /// Closes the connection instead of answering.
    Close,
    /// Answers when so many have been asked.
    Meet(Arc<Barrier>),
}

/// Allows everything.
pub fn allow() -> Behaviour {
    Behaviour::Respond(json!({ "allowed": true }))
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A running server.
pub struct Server {
    /// Its address, without a path.
    pub url: String,
    /// Its port on loopback.
    pub port: u16,
    /// The certificate of its CA, PEM.
    pub ca: String,
    state: Arc<State>,
}

struct State {
    behaviours: HashMap<&'static str, Behaviour>,
    asked: Mutex<Vec<(String, Value)>>,
    connections: AtomicUsize,
}

impl Server {
    /// A server that has a certificate for loopback and for the service `default/hook`.
    pub async fn start(behaviours: impl IntoIterator<Item = (&'static str, Behaviour)>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let pki = Pki::open(dir.path()).expect("keys");
        let purpose = Purpose::Server {
            name: "hook".to_owned(),
            groups: Vec::new(),
            hosts: vec!["127.0.0.1".to_owned(), "hook.default.svc".to_owned()],
        };
        let identity = pki.identity("hook", &purpose).expect("an identity");
        let (cert, key) = (identity.cert_pem, identity.key_pem);
        Self::start_with(behaviours, &cert, &key, pki.ca_cert_pem()).await
    }

    pub async fn start_with(
        behaviours: impl IntoIterator<Item = (&'static str, Behaviour)>,
        cert: &str,
        key: &str,
        ca: &str,
    ) -> Self {
        let cert = CertificateDer::from_pem_slice(cert.as_bytes()).expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![cert], key)
            .expect("TLS");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let state = Arc::new(State {
            behaviours: behaviours.into_iter().collect(),
            asked: Mutex::default(),
            connections: AtomicUsize::new(0),
        });
        let served = state.clone();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else {
                    continue;
                };
                served.connections.fetch_add(1, Ordering::SeqCst);
                let state = served.clone();
                let service = service_fn(move |request| answer(state.clone(), request));
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        Self {
            url: format!("https://127.0.0.1:{port}"),
            port,
            ca: ca.to_owned(),
            state,
        }
    }

    /// The reviews so far, with their paths and queries.
    pub fn asked(&self) -> Vec<(String, Value)> {
        self.state.asked.lock().clone()
    }

    /// The paths of the reviews so far.
    pub fn paths(&self) -> Vec<String> {
        let path = |url: &str| url.split('?').next().unwrap_or_default().to_owned();
        self.asked().iter().map(|(url, _)| path(url)).collect()
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }
}

async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::io::Error> {
    let url = request.uri().to_string();
    let behaviour = state.behaviours[request.uri().path()].clone();
    let body = request.into_body().collect().await.expect("a body");
    let review: Value = serde_json::from_slice(&body.to_bytes()).expect("a review");
    state.asked.lock().push((url, review.clone()));
    let whole = |code: u16, body: String| {
        let body = Full::new(Bytes::from(body)).boxed_unsync();
        let mut response = Response::new(body);
        *response.status_mut() = code.try_into().expect("a code");
        Ok(response)
    };
    let respond = |mut response: Value| {
        if response.get("uid").is_none() {
            response["uid"] = review["request"]["uid"].clone();
        }
        let answer = json!({ "kind": review["kind"], "apiVersion": review["apiVersion"], "response": response });
        whole(200, answer.to_string())
    };
    match behaviour {
        Behaviour::Respond(response) => respond(response),
        Behaviour::Patch(patch) => {
            let patch = super::base64(&patch.to_string());
            respond(json!({ "allowed": true, "patchType": "JSONPatch", "patch": patch }))
        }
        Behaviour::Body(code, body) => whole(code, body.to_owned()),
        Behaviour::Huge => {
            let chunk = Bytes::from(vec![b' '; 1 << 20]);
            let chunks =
                futures::stream::iter(0..1024).map(move |_| Ok(Frame::data(chunk.clone())));
            Ok(Response::new(StreamBody::new(chunks).boxed_unsync()))
        }
        Behaviour::Redirect => {
            let mut response = whole(307, String::new())?;
            let location = "/allow".parse().expect("a header");
            response.headers_mut().insert("location", location);
            Ok(response)
        }
        Behaviour::Hang => std::future::pending().await,
        Behaviour::Close => Err(std::io::Error::other("the test says so")),
        Behaviour::Meet(barrier) => {
            barrier.wait().await;
            respond(json!({ "allowed": true }))
        }
    }
}
