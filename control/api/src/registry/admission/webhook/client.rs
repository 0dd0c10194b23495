//! Calls of a webhook: HTTPS with a deadline, over connections that are kept for the next call.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rand::seq::IndexedRandom as _;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::messages::{self, PostError};
use super::place::{Endpoint, Place, PlaceError};
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

/// Why a webhook can never be called.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Its address.
    #[error("use the address")]
    Place {
        /// What is wrong.
        source: PlaceError,
    },
    /// Its caBundle is not base64.
    #[error("decode the caBundle")]
    Bundle {
        /// What is wrong.
        source: base64::DecodeError,
    },
    /// Nobody's certificate could be believed.
    #[error("unable to load root certificates")]
    Trust {
        /// Why.
        source: TrustError,
    },
}

/// Calls one webhook.
pub struct Client {
    place: Place,
    connector: TlsConnector,
    pool: Arc<Pool>,
}

impl Client {
    /// A client that believes the certificates of `bundle`, or those that this machine believes if it is empty.
    ///
    /// # Errors
    ///
    /// If the bundle cannot be used.
    pub fn new(place: Place, bundle: &[u8]) -> Result<Self, ClientError> {
        let connector = trust::connector(bundle);
        Ok(Self {
            place,
            connector: connector.map_err(|source| ClientError::Trust { source })?,
            pool: Arc::default(),
        })
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
            messages::answer(&parts, body.to_bytes())
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
                        return Err(messages::of_exchange(&error.into_error()));
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
            format!("dial tcp {address}: {}", messages::of_dial(&error))
        })?;
        // The review goes out in one piece, and must not wait for an acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            // Slower, not wrong.
            tracing::debug!(%error, "set TCP_NODELAY");
        }
        let stream = self
            .connector
            .connect(name, stream)
            .await
            .map_err(|error| {
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
                match (inner, error.kind()) {
                    (Some(inner), _) => messages::of_tls(inner),
                    (None, std::io::ErrorKind::UnexpectedEof) => "EOF".to_owned(),
                    (None, _) => error.to_string(),
                }
            })?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| messages::of_exchange(&error))?;
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
