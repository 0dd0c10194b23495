//! One HTTP(S) request to a container, for probes and hooks.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use url::Url;

use crate::go;

/// The most requests of one check (Go's `http.Client`).
const MAX_REDIRECTS: u32 = 10;
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

    fn url(&self) -> String {
        format!(
            "{}://{}:{}{}",
            if self.https { "https" } else { "http" },
            bracketed(&self.host),
            self.port,
            self.path
        )
    }

    /// Where a `Location` points to from here.
    fn redirected(&self, location: &str) -> Result<Self, String> {
        let parsed = Url::parse(&self.url()).and_then(|base| base.join(location));
        let url =
            parsed.map_err(|e| format!("failed to parse Location header {location:?}: {e}"))?;
        let https = match url.scheme() {
            "http" => false,
            "https" => true,
            other => return Err(format!("unsupported protocol scheme {other:?}")),
        };
        let host = url.host_str().ok_or("no Host in request URL")?;
        let mut headers = self.headers.clone();
        // A name that was asked for holds for where it was asked, and for what is relative to it.
        if Url::parse(location).is_ok() {
            headers.retain(|(name, _)| !name.eq_ignore_ascii_case("host"));
        }
        let query = url.query().map(|q| format!("?{q}")).unwrap_or_default();
        Ok(Self {
            https,
            host: host.trim_matches(['[', ']']).to_owned(),
            port: url
                .port_or_known_default()
                .ok_or("no port in request URL")?,
            path: format!("{}{query}", url.path()),
            headers,
        })
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
    Ok(Target {
        https: get
            .scheme
            .as_deref()
            .is_some_and(|s| s.eq_ignore_ascii_case("https")),
        host,
        port: port(container, &get.port)?,
        path: go::request_target(get.path.as_deref().unwrap_or_default()),
        headers: get
            .http_headers
            .iter()
            .flatten()
            .map(|h| (h.name.clone(), h.value.clone()))
            .collect(),
    })
}

/// Status and the start of the body, of the last answer of a chain of redirects within the target's host.
///
/// An error is a message for people; certificates are not verified, as with the kubelet's probes.
pub(crate) async fn get(target: &Target, timeout: Duration) -> Result<(u16, String), String> {
    match tokio::time::timeout(timeout, follow(target)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!(
            "Get \"{}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
            target.url()
        )),
    }
}

/// Asks the target, and then whoever it points to, as long as that has the target's own host name.
///
/// Who asks from inside a cluster's node reaches what others cannot: a container must not choose where it asks.
/// Source: kubernetes, pkg/probe/http, `RedirectChecker`; Go, net/http, `redirectBehavior`.
async fn follow(target: &Target) -> Result<(u16, String), String> {
    let mut current = target.clone();
    let mut asked = 0;
    loop {
        let failed = |error: String| format!("Get \"{}\": {error}", current.url());
        let answer = exchange(&current).await.map_err(failed)?;
        asked += 1;
        let redirects = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
        let Some(location) = answer.location.filter(|l| redirects && !l.is_empty()) else {
            return Ok((answer.status, answer.body));
        };
        let next = current.redirected(&location).map_err(failed)?;
        if !next.host.eq_ignore_ascii_case(&target.host) {
            return Ok((answer.status, answer.body));
        }
        if asked >= MAX_REDIRECTS {
            return Err(failed(format!("stopped after {MAX_REDIRECTS} redirects")));
        }
        current = next;
    }
}

/// What a server answered, as far as anybody looks at it.
struct Answer {
    status: u16,
    location: Option<String>,
    body: String,
}

fn bracketed(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}

async fn exchange(target: &Target) -> Result<Answer, String> {
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

async fn request<S>(target: &Target, stream: S) -> Result<Answer, String>
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
    let location = response
        .headers()
        .get("location")
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let mut body = response.into_body();
    let mut said = Vec::new();
    // A longer body is cut off, and one that breaks off ends there: the status has been read by then.
    while said.len() < MAX_BODY
        && let Some(Ok(frame)) = body.frame().await
    {
        said.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
    }
    driver.abort();
    said.truncate(MAX_BODY);
    Ok(Answer {
        status,
        location,
        body: String::from_utf8_lossy(&said).into_owned(),
    })
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers each path as the table says, and everything else with 500; its port.
    async fn server(table: &'static [(&'static str, u16, &'static str)]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("accepted");
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.expect("a request"));
                }
                let request = String::from_utf8(request).expect("text");
                let path = request.split(' ').nth(1).unwrap_or_default();
                let found = table.iter().find(|(known, _, _)| *known == path);
                let (status, location) = found.map_or((500, ""), |(_, s, l)| (*s, *l));
                let location = location.replace("PORT", &port.to_string());
                let host = request
                    .lines()
                    .find(|l| l.to_lowercase().starts_with("host:"));
                let body = host.unwrap_or_default().to_owned();
                let length = body.len();
                let location = match location.as_str() {
                    "" => String::new(),
                    place => format!("Location: {place}\r\n"),
                };
                let answer = format!(
                    "HTTP/1.1 {status} X\r\n{location}Content-Length: {length}\r\n\r\n{body}"
                );
                stream.write_all(answer.as_bytes()).await.expect("answered");
            }
        });
        port
    }

    fn to(port: u16, path: &str, host: Option<&str>) -> Target {
        let action: HTTPGetAction = serde_json::from_value(serde_json::json!({
            "port": port, "path": path,
            "httpHeaders": host.map(|h| vec![serde_json::json!({"name": "Host", "value": h})]),
        }))
        .expect("an action");
        let address = IpAddr::from([127, 0, 0, 1]);
        target(&action, &Container::default(), Some(address)).expect("a target")
    }

    #[tokio::test]
    async fn redirects_are_followed_within_the_host_and_no_further() {
        static TABLE: &[(&str, u16, &str)] = &[
            ("/ok", 200, ""),
            ("/to-ok", 302, "/ok"),
            ("/deep/to-ok", 301, "../ok"),
            ("/absolute", 307, "http://127.0.0.1:PORT/ok"),
            ("/twice", 308, "/to-ok"),
            ("/to-bad", 302, "/bad"),
            ("/away", 302, "http://192.0.2.1:PORT/ok"),
            ("/by-name", 303, "http://localhost:PORT/bad"),
            ("/loop", 302, "/loop"),
            ("/nowhere", 302, ""),
            ("/not-modified", 304, "/bad"),
            ("/no-url", 302, "http://["),
            ("/mail", 302, "mailto:a@b"),
            ("/a%20b/ok", 200, ""),
            ("/to-space", 302, "/a b/ok"),
        ];
        let port = server(TABLE).await;
        for (path, expected) in [
            ("/ok", Ok(200)),
            ("/to-ok", Ok(200)),
            ("/deep/to-ok", Ok(200)),
            ("/absolute", Ok(200)),
            ("/twice", Ok(200)),
            ("/to-bad", Ok(500)),
            // Another host: it is neither asked nor held against the container.
            ("/away", Ok(302)),
            ("/by-name", Ok(303)),
            ("/loop", Err("stopped after 10 redirects")),
            ("/nowhere", Ok(302)),
            ("/not-modified", Ok(304)),
            ("/no-url", Err("failed to parse Location header")),
            ("/mail", Err("unsupported protocol scheme \"mailto\"")),
            ("/a b/ok", Ok(200)),
            ("/to-space", Ok(200)),
        ] {
            let got = get(&to(port, path, None), Duration::from_secs(5)).await;
            match (got, expected) {
                (Ok((status, _)), Ok(expected)) => assert_eq!(status, expected, "{path}"),
                (Err(error), Err(expected)) => assert!(error.contains(expected), "{path}: {error}"),
                (got, expected) => panic!("{path}: {got:?}, not {expected:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_host_name_that_was_asked_for_is_kept_for_relative_redirects() {
        static TABLE: &[(&str, u16, &str)] = &[
            ("/ok", 200, ""),
            ("/relative", 302, "/ok"),
            ("/absolute", 302, "http://127.0.0.1:PORT/ok"),
        ];
        let port = server(TABLE).await;
        for (path, host) in [
            ("/relative", "host: example.com".to_owned()),
            ("/absolute", format!("host: 127.0.0.1:{port}")),
        ] {
            let target = to(port, path, Some("example.com"));
            let (_, body) = get(&target, Duration::from_secs(5))
                .await
                .expect("answered");
            assert_eq!(body.to_lowercase(), host, "{path}");
        }
    }
}
