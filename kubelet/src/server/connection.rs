//! One caller's connection: no step of it may take for ever.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;

use super::auth;

/// How long a caller may take for its TLS handshake, and then for the start of its first request.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a caller may be silent between two requests and take for the head of the next one, as in the kubelet.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// How often a silent HTTP/2 connection is asked whether anybody is there.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// The bytes that an HTTP/2 connection begins with (RFC 9113, 3.4).
const PREFACE: usize = 24;

/// Why a connection ended before its caller closed it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("TLS handshake")]
    Handshake { source: io::Error },
    #[error("the TLS handshake timed out")]
    HandshakeTimeout,
    #[error("serve HTTP")]
    Http { source: hyper::Error },
}

/// Serves one connection until it ends.
pub(super) async fn serve(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
) -> Result<(), ConnectionError> {
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
        .await
        .map_err(|_| ConnectionError::HandshakeTimeout)?
        .map_err(|source| ConnectionError::Handshake { source })?;
    let tls = stream.get_ref().1;
    let is_http2 = tls.alpn_protocol() == Some(b"h2");
    let service = TowerToHyperService::new(router.layer(axum::Extension(auth::peer(tls))));
    // Each of the two reads on its own as soon as it sees how a connection begins, and waits for that without a limit.
    let served = if is_http2 {
        let stream = TokioIo::new(Prompt::new(stream, PREFACE));
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL);
        builder.serve_connection(stream, service).await
    } else {
        let stream = TokioIo::new(Prompt::new(stream, 1));
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_TIMEOUT);
        let connection = builder.serve_connection(stream, service);
        connection.with_upgrades().await
    };
    served.map_err(|source| ConnectionError::Http { source })
}

/// A stream whose first bytes must come in time.
struct Prompt<S> {
    stream: S,
    /// How many bytes are still to come, and until when; `None` once they came.
    wait: Option<(usize, Pin<Box<Sleep>>)>,
}

impl<S> Prompt<S> {
    fn new(stream: S, bytes: usize) -> Self {
        Self {
            stream,
            wait: Some((bytes, Box::pin(tokio::time::sleep(HANDSHAKE_TIMEOUT)))),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prompt<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buffer);
        let Some((missing, deadline)) = &mut this.wait else {
            return polled;
        };
        let came = buffer.filled().len() - before;
        if came >= *missing {
            this.wait = None;
            return polled;
        }
        *missing -= came;
        if polled.is_pending() && deadline.as_mut().poll(cx).is_ready() {
            let late = "the connection's first request did not begin in time";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, late)));
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prompt<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::routing::get;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server of one connection that answers `/`, and a client that trusts it and offers this protocol.
    async fn pair(
        protocol: &[u8],
    ) -> (
        tokio::task::JoinHandle<Result<(), ConnectionError>>,
        TcpStream,
        tokio_rustls::TlsConnector,
    ) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let parameters = rcgen::CertificateParams::new(vec!["node".to_owned()]);
        let certificate = parameters.and_then(|p| p.self_signed(&key)).expect("one");
        let certificate = CertificateDer::from(certificate.der().to_vec());
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .expect("a server");
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate).expect("a root");
        let mut client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![protocol.to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let address = listener.local_addr().expect("an address");
        let router = Router::new().route("/", get(|| async { "hello" }));
        let served = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("accepted");
            serve(stream, TlsAcceptor::from(Arc::new(server)), router).await
        });
        let stream = TcpStream::connect(address).await.expect("connected");
        (
            served,
            stream,
            tokio_rustls::TlsConnector::from(Arc::new(client)),
        )
    }

    fn name() -> ServerName<'static> {
        ServerName::try_from("node").expect("a name")
    }

    /// Lets the clock run: the tests' timers end as soon as nothing else is left to do.
    fn end_waits() {
        tokio::time::pause();
    }

    #[tokio::test]
    async fn a_caller_that_never_begins_its_handshake_is_dropped() {
        let (served, _stream, _) = pair(b"http/1.1").await;
        end_waits();
        let end = served.await.expect("no panic");
        assert!(
            matches!(end, Err(ConnectionError::HandshakeTimeout)),
            "{end:?}"
        );
    }

    #[tokio::test]
    async fn a_caller_that_asks_for_nothing_is_dropped() {
        for (protocol, sent) in [
            (&b"http/1.1"[..], &b""[..]),
            (b"http/1.1", b"GET / HT"),
            (b"h2", b""),
            (b"h2", b"PRI * HTTP/2.0"),
        ] {
            let (served, stream, connector) = pair(protocol).await;
            let mut stream = connector.connect(name(), stream).await.expect("TLS");
            stream.write_all(sent).await.expect("sent");
            stream.flush().await.expect("sent");
            end_waits();
            let limit = HANDSHAKE_TIMEOUT + IDLE_TIMEOUT * 2;
            let ended = tokio::time::timeout(limit, served).await;
            tokio::time::resume();
            assert!(ended.is_ok(), "still served after {sent:?}");
        }
    }

    #[tokio::test]
    async fn a_caller_that_asks_is_answered() {
        let (served, stream, connector) = pair(b"http/1.1").await;
        let mut stream = connector.connect(name(), stream).await.expect("TLS");
        let request = b"GET / HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.expect("sent");
        let mut answer = Vec::new();
        // A server that closes without a TLS alert is no concern of this test.
        let _end = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("hello"),
            "{answer}"
        );
        served.await.expect("no panic").expect("served");
    }
}
