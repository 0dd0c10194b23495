//! Sockets: TLS, HTTP/1.1 and HTTP/2, one task per connection.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::Request;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::body::BoxError;
use super::dispatch::{Origin, handle};
use crate::auth::UserInfo;
use crate::pki::Pki;
use crate::pki::clock::TlsTime;
use crate::pki::renewal::Shown;
use crate::server::Inner;

/// While connections wait for a place, the log repeats it no more often than this.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// How long running requests have after the end was announced.
const DRAIN: Duration = Duration::from_secs(5);

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate or key that cannot be read.
    #[error("read the {what} as PEM")]
    Pem {
        /// Which.
        what: &'static str,
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// The certificates of clients cannot be checked.
    #[error("check client certificates")]
    Verifier {
        /// Why.
        source: rustls::server::VerifierBuilderError,
    },
    /// rustls refuses the certificate.
    #[error("use the certificate")]
    Rustls {
        /// Why.
        source: rustls::Error,
    },
}

/// The certificates in a PEM text.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::Pem {
            what: "certificate",
            source,
        })
}

/// The private key in a PEM text.
pub fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|source| TlsError::Pem {
        what: "private key",
        source,
    })
}

/// A store that trusts one CA.
pub fn trust(ca_pem: &str) -> Result<rustls::RootCertStore, TlsError> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(ca_pem)? {
        roots
            .add(certificate)
            .map_err(|source| TlsError::Rustls { source })?;
    }
    Ok(roots)
}

/// TLS as a server; clients may show a certificate of the CA.
pub fn tls(pki: &Pki, identity: Shown) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(trust(pki.ca_cert_pem())?),
        provider.clone(),
    )
    .allow_unauthenticated()
    .build()
    .map_err(|source| TlsError::Verifier { source })?;
    let time = Arc::new(TlsTime(pki.clock()));
    let mut config = rustls::ServerConfig::builder_with_details(provider, time)
        .with_safe_default_protocol_versions()
        .map_err(|source| TlsError::Rustls { source })?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(identity));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Serves until `stop`, then lets running requests end. Watches end with the server's own stop.
pub async fn run(
    server: Arc<Inner>,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let graceful = GracefulShutdown::new();
    let most = server.config.max_connections;
    let places = Arc::new(Semaphore::new(most));
    let mut warned: Option<Instant> = None;
    loop {
        let silent = warned.is_none_or(|warned| warned.elapsed() >= WARN_EVERY);
        if places.available_permits() == 0 && silent {
            warned = Some(Instant::now());
            tracing::warn!(
                most,
                "as many connections as there may be: the next one waits"
            );
        }
        let accept = async {
            let place = places.clone().acquire_owned().await;
            let place = place.expect("the semaphore is never closed");
            (listener.accept().await, place)
        };
        // A connection is either accepted or still waits in the kernel's queue.
        let (accepted, place) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let task = connection(server.clone(), acceptor.clone(), stream, graceful.watcher());
                tokio::spawn(async move {
                    let _place = place;
                    task.await;
                });
            }
            Err(error) => pause_after(&error).await,
        }
    }
    server.stop.cancel();
    drop(listener);
    if tokio::time::timeout(DRAIN, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("some requests did not end in time");
    }
}

/// Accepting failed: with too few descriptors, trying again at once would only burn time.
async fn pause_after(error: &io::Error) {
    tracing::warn!(%error, "cannot accept a connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn connection(
    server: Arc<Inner>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    watcher: hyper_util::server::graceful::Watcher,
) {
    // Small answers must not wait for the acknowledgement of the one before.
    if let Err(error) = stream.set_nodelay(true) {
        // Slower, not wrong: small answers wait for more to send along.
        tracing::debug!(%error, "set TCP_NODELAY");
    }
    let patience = server.config.head_timeout;
    let stream = match tokio::time::timeout(patience, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake"),
        Err(_) => return,
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let user = certificates
        .and_then(|chain| chain.first())
        .and_then(UserInfo::from_certificate)
        .map(Arc::new);
    let asked = Arc::new(AtomicBool::new(false));
    let asks = asked.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        asks.store(true, Ordering::Relaxed);
        let server = server.clone();
        let origin = Origin::Connection(user.clone());
        async move {
            let request = request.map(|body| {
                body.map_err(|error| Box::new(error) as BoxError)
                    .boxed_unsync()
            });
            Ok::<_, std::convert::Infallible>(handle(server, request, origin).await)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .half_close(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1000)
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .max_send_buf_size(1 << 20);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = pin!(watcher.watch(connection.into_owned()));
    // hyper has no deadline for the first bytes, nor for HTTP/2's preface: without one, who never asks for anything, and need not
    // even say who they are, would hold a place for ever.
    let ended = match tokio::time::timeout(patience, &mut connection).await {
        Ok(ended) => ended,
        Err(_) if asked.load(Ordering::Relaxed) => connection.await,
        Err(_) => return tracing::debug!("a connection without a request"),
    };
    if let Err(error) = ended {
        tracing::debug!(error = &*error as &dyn std::error::Error, "connection");
    }
}
