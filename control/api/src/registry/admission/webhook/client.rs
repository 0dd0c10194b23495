//! Calls of a webhook: HTTPS with a deadline, over connections that are kept for the next call.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rand::seq::IndexedRandom as _;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::place::{Endpoint, Place};
use super::trust::{self, TrustError};
use crate::registry::Registry;

/// The largest answer that is read: as much as a request to this server may have.
const LARGEST_ANSWER: usize = 3 << 20;
/// How long a connection waits for the next call (net/http's own number).
const IDLE: Duration = Duration::from_secs(90);
/// So many connections wait at most (client-go's own number).
const MOST_IDLE: usize = 25;
/// What a call that did not end in time says.
const TOO_LATE: &str = "context deadline exceeded";

/// Why there is no answer, in the words of client-go and net/http.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// There was no exchange.
    #[error("Post {url:?}: {reason}")]
    Exchange {
        /// The URL.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// The answer is a refusal.
    #[error("{message}")]
    Refused {
        /// What it says.
        message: String,
    },
    /// The answer is too large.
    #[error("the answer is larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// The answer has no body.
    #[error("0-length response with status code: {code} and content type: {content_type}")]
    Empty {
        /// Its code.
        code: u16,
        /// Its content type.
        content_type: String,
    },
}

/// Calls one webhook.
pub struct Client {
    place: Place,
    bundle: Vec<u8>,
    connector: OnceLock<Result<TlsConnector, Arc<TrustError>>>,
    pool: Arc<Pool>,
}

impl Client {
    /// A client that believes the certificates of `bundle`, or those that this machine believes if it is empty.
    pub fn new(place: Place, bundle: Vec<u8>) -> Self {
        Self {
            place,
            bundle,
            connector: OnceLock::new(),
            pool: Arc::default(),
        }
    }

    /// Whether calls are possible at all.
    ///
    /// # Errors
    ///
    /// If the bundle cannot be used.
    pub fn check(&self) -> Result<(), Arc<TrustError>> {
        self.connector().map(|_| ())
    }

    fn connector(&self) -> Result<TlsConnector, Arc<TrustError>> {
        let made = self
            .connector
            .get_or_init(|| trust::connector(&self.bundle).map_err(Arc::new));
        made.clone()
    }

    /// Sends a review, and returns the answer's body.
    ///
    /// # Errors
    ///
    /// If there is no answer in time, or none that is a success. Redirects are no success: the webhook could send this server,
    /// and what it sees, anywhere.
    pub async fn post(
        &self,
        registry: &Registry,
        timeout: Duration,
        review: Bytes,
    ) -> Result<Bytes, PostError> {
        let (authority, path) = (self.place.authority(), &self.place.path);
        let url = format!("https://{authority}{path}?timeout={}s", timeout.as_secs());
        let failed = |reason: String| PostError::Exchange {
            url: url.clone(),
            reason,
        };
        let exchange = async {
            let (response, connection) = self
                .exchange(registry, timeout, review)
                .await
                .map_err(failed)?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, LARGEST_ANSWER).collect().await;
            let body = body.map_err(|error| match error.downcast::<LengthLimitError>() {
                Ok(_) => PostError::TooLarge {
                    limit: LARGEST_ANSWER,
                },
                Err(error) => failed(error.to_string()),
            })?;
            self.pool.keep(connection);
            answer(&parts, body.to_bytes())
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(failed(TOO_LATE.to_owned())),
        }
    }

    async fn exchange(
        &self,
        registry: &Registry,
        timeout: Duration,
        review: Bytes,
    ) -> Result<(Response<Incoming>, Connection), String> {
        let endpoints = self.place.endpoints(registry);
        let endpoints = endpoints.map_err(|error| error.to_string())?;
        loop {
            let kept = self.pool.take(&endpoints);
            let is_kept = kept.is_some();
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.dial(&endpoints).await?,
            };
            if connection.sender.ready().await.is_err() && is_kept {
                continue;
            }
            let request = self.request(timeout, review.clone())?;
            match connection.sender.try_send_request(request).await {
                Ok(response) => return Ok((response, connection)),
                // If nothing was sent, the webhook closed the connection while it waited.
                Err(mut error) => {
                    if !is_kept || error.take_message().is_none() {
                        return Err(hyper_in_go_words(&error.into_error()));
                    }
                }
            }
        }
    }

    fn request(&self, timeout: Duration, review: Bytes) -> Result<Request<Full<Bytes>>, String> {
        Request::builder()
            .method(Method::POST)
            .uri(format!(
                "{}?timeout={}s",
                self.place.path,
                timeout.as_secs()
            ))
            .header(header::HOST, self.place.authority())
            .header(header::ACCEPT, "application/json, */*")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, "kube-apiserver-admission")
            .body(Full::new(review))
            .map_err(|error| error.to_string())
    }

    async fn dial(&self, endpoints: &[Endpoint]) -> Result<Connection, String> {
        let connector = self.connector().map_err(|error| error.to_string())?;
        let to = endpoints
            .choose(&mut rand::rng())
            .ok_or("there is no endpoint")?;
        let (host, port) = to;
        let name = ServerName::try_from(self.place.host.clone());
        let name = name.map_err(|error| error.to_string())?;
        let stream = TcpStream::connect((&**host, *port)).await;
        let stream = stream.map_err(|error| {
            let address = match host.contains(':') {
                true => format!("[{host}]:{port}"),
                false => format!("{host}:{port}"),
            };
            format!("dial tcp {address}: {}", dial_in_go_words(&error))
        })?;
        // The review goes out in one piece, and must not wait for an acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            // Slower, not wrong.
            tracing::debug!(%error, "set TCP_NODELAY");
        }
        let stream = connector.connect(name, stream).await.map_err(|error| {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
            match (inner, error.kind()) {
                (Some(inner), _) => trust::in_go_words(inner),
                (None, std::io::ErrorKind::UnexpectedEof) => "EOF".to_owned(),
                (None, _) => error.to_string(),
            }
        })?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| hyper_in_go_words(&error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                // Whoever waits for an answer learns it too.
                tracing::debug!(%error, "connection to a webhook");
            }
        });
        Ok(Connection {
            sender,
            to: to.clone(),
            since: Instant::now(),
        })
    }
}

/// A connection to an endpoint.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    to: Endpoint,
    since: Instant,
}

/// Connections that wait for the next call.
#[derive(Default)]
struct Pool(Mutex<Vec<Connection>>);

impl Pool {
    /// The connection that was used last and leads to one of the endpoints.
    fn take(&self, endpoints: &[Endpoint]) -> Option<Connection> {
        let mut waiting = self.0.lock();
        waiting.retain(|connection| endpoints.contains(&connection.to) && connection.is_fresh());
        waiting.pop()
    }

    fn keep(self: &Arc<Self>, mut connection: Connection) {
        connection.since = Instant::now();
        let mut waiting = self.0.lock();
        if waiting.len() < MOST_IDLE && connection.is_fresh() {
            if waiting.is_empty() {
                tokio::spawn(sweep(Arc::downgrade(self)));
            }
            waiting.push(connection);
        }
    }
}

impl Connection {
    fn is_fresh(&self) -> bool {
        !self.sender.is_closed() && self.since.elapsed() < IDLE
    }
}

/// Closes connections that nobody used for a while, until none is left.
async fn sweep(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(IDLE).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut waiting = pool.0.lock();
        waiting.retain(Connection::is_fresh);
        if waiting.is_empty() {
            return;
        }
    }
}

fn dial_in_go_words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        _ => error.to_string(),
    }
}

fn hyper_in_go_words(error: &hyper::Error) -> String {
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return "EOF".to_owned();
    }
    if error.is_parse() {
        return format!(
            "net/http: HTTP/1.x transport connection broken: malformed HTTP response: {error}"
        );
    }
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// The body of a successful answer; else what client-go makes of it (apimachinery, `api/errors.NewGenericServerResponse`).
fn answer(parts: &http::response::Parts, body: Bytes) -> Result<Bytes, PostError> {
    if parts.status.is_success() {
        if body.is_empty() {
            let content_type = parts.headers.get(header::CONTENT_TYPE);
            let content_type = content_type.and_then(|value| value.to_str().ok());
            return Err(PostError::Empty {
                code: parts.status.as_u16(),
                content_type: content_type.unwrap_or_default().to_owned(),
            });
        }
        return Ok(body);
    }
    let message = refusal(parts.status, &body);
    Err(PostError::Refused { message })
}

fn refusal(status: StatusCode, body: &[u8]) -> String {
    let object: Value = serde_json::from_slice(body).unwrap_or_default();
    if object["kind"] == "Status"
        && object["status"] != "Success"
        && let Some(message) = object["message"].as_str()
    {
        return message.to_owned();
    }
    let text = String::from_utf8_lossy(body);
    let text = match text.trim() {
        "" => "unknown",
        text => text,
    };
    match status.as_u16() {
        400 => "the server rejected our request for an unknown reason".to_owned(),
        401 => "the server has asked for the client to provide credentials".to_owned(),
        403 => text.to_owned(),
        404 => "the server could not find the requested resource".to_owned(),
        405 => "the server does not allow this method on the requested resource".to_owned(),
        409 => "the server reported a conflict".to_owned(),
        422 => "the server rejected our request due to an error in our request".to_owned(),
        429 => "the server has received too many requests and has asked us to try again later".to_owned(),
        503 => "the server is currently unable to handle the request".to_owned(),
        504 => "the server was unable to return a response in the time allotted, but may still be processing the request".to_owned(),
        code if code >= 500 => {
            format!("an error on the server ({text:?}) has prevented the request from succeeding")
        }
        code => format!("the server responded with the status code {code} but did not return more information"),
    }
}
