//! One HTTP(S) request to a container, for probes and hooks.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;

/// The most of a body that is kept, in bytes.
const MAX_BODY: usize = 10 * 1024;

/// Where to, and what with.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    https: bool,
    host: String,
    port: u16,
    pub(crate) path: String,
    headers: Vec<(String, String)>,
}

impl Target {
    /// A plain GET of `path` over TLS.
    pub(crate) fn https(host: String, port: u16, path: String) -> Self {
        Self {
            https: true,
            host,
            port,
            path,
            headers: Vec::new(),
        }
    }
}

/// A container's port by number or name.
pub(crate) fn port(container: &Container, wanted: &IntOrString) -> Result<u16, String> {
    let number = match wanted {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match container
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_ref() == Some(name))
        {
            Some(port) => port.container_port,
            None => name.parse().map_err(|_| {
                format!(
                    "couldn't find port: {name:?} in container {}",
                    container.name
                )
            })?,
        },
    };
    u16::try_from(number)
        .ok()
        .filter(|p| *p > 0)
        .ok_or_else(|| format!("invalid port number: {number}"))
}

/// What an `httpGet` of this container means.
pub(crate) fn target(
    get: &HTTPGetAction,
    container: &Container,
    pod_ip: Option<IpAddr>,
) -> Result<Target, String> {
    let host = match get.host.as_deref().filter(|h| !h.is_empty()) {
        Some(host) => host.to_owned(),
        None => pod_ip.ok_or("the pod has no address yet")?.to_string(),
    };
    let path = get.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    Ok(Target {
        https: get
            .scheme
            .as_deref()
            .is_some_and(|s| s.eq_ignore_ascii_case("https")),
        host,
        port: port(container, &get.port)?,
        path: if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        },
        headers: get
            .http_headers
            .iter()
            .flatten()
            .map(|h| (h.name.clone(), h.value.clone()))
            .collect(),
    })
}

/// Status and the start of the body.
///
/// An error is a message for people; certificates are not verified, as with the kubelet's probes.
pub(crate) async fn get(target: &Target, timeout: Duration) -> Result<(u16, String), String> {
    let url = format!(
        "{}://{}:{}{}",
        if target.https { "https" } else { "http" },
        bracketed(&target.host),
        target.port,
        target.path
    );
    match tokio::time::timeout(timeout, exchange(target)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(format!("Get \"{url}\": {error}")),
        Err(_) => Err(format!(
            "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}

async fn exchange(target: &Target) -> Result<(u16, String), String> {
    let stream = connect(&target.host, target.port).await?;
    if target.https {
        let config = rustls::ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate))
            .with_no_client_auth();
        let name = ServerName::try_from(target.host.clone()).map_err(|e| e.to_string())?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector
            .connect(name, stream)
            .await
            .map_err(|e| e.to_string())?;
        request(target, stream).await
    } else {
        request(target, stream).await
    }
}

/// Connects, with the error worded as Go words it.
pub(crate) async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let address = format!("{}:{port}", bracketed(host));
    TcpStream::connect(&address).await.map_err(|e| {
        let cause = match e.kind() {
            std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
            std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
            _ => e.to_string(),
        };
        format!("dial tcp {address}: {cause}")
    })
}

async fn request<S>(target: &Target, stream: S) -> Result<(u16, String), String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let driver = tokio::spawn(connection);
    let mut request = hyper::Request::get(&target.path);
    let given = |name: &str| {
        target
            .headers
            .iter()
            .any(|(n, _)| n.eq_ignore_ascii_case(name))
    };
    if !given("host") {
        request = request.header(
            "Host",
            format!("{}:{}", bracketed(&target.host), target.port),
        );
    }
    if !given("user-agent") {
        request = request.header("User-Agent", "kube-probe/1.37");
    }
    if !given("accept") {
        request = request.header("Accept", "*/*");
    }
    for (name, value) in &target.headers {
        request = request.header(name, value);
    }
    let request = request
        .header("Connection", "close")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|e| e.to_string())?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|e| e.to_string())?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
    driver.abort();
    // A longer body is cut off; the status has been read by then.
    let text = body
        .map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned())
        .unwrap_or_default();
    Ok((status, text))
}

/// Takes any certificate: a probe asks whether a server answers, not who it is.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
