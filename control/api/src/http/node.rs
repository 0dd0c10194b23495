//! What the node answers: logs, exec, attach, port-forward. And how requests go on to others, which `proxy` does too.
//!
//! The kubelet is called over TLS with this server's own client certificate. An upgraded connection (WebSocket or SPDY) is
//! passed through byte by byte: the streams inside are between the client and the kubelet.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::body::{BoxError, RequestBody, ResponseBody};
use super::dispatch::Call;
use super::query::{Query, encode};
use super::quirks::loses_websocket_output;
use super::respond::Answer;
use super::serve::{TlsError, trust};
use super::websocket;
use crate::pki::renewal::Shown;
use crate::registry::write::Target;
use crate::status::{ApiError, FieldError};

const DIAL_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
const KUBELET_PORT: u64 = 10250;

/// How nodes, and the pods on them, are called.
pub struct Nodes {
    /// With our certificate, to who shows one of the CA.
    connector: TlsConnector,
    /// Without one, to whoever answers.
    unverified: TlsConnector,
}

impl Nodes {
    /// With the API server's own client certificate; nodes must show one of the CA.
    pub fn new(ca_pem: &str, identity: Shown) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|source| TlsError::Rustls { source })?
            .with_root_certificates(trust(ca_pem)?)
            .with_client_cert_resolver(Arc::new(identity));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
            unverified: super::unverified::connector()?,
        })
    }
}

/// Who is spoken to, and how their failures are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// A kubelet, over TLS with certificates on both sides.
    Kubelet,
    /// A pod, or what else a proxy leads to.
    Proxied {
        /// Over TLS, with any certificate.
        tls: bool,
    },
}

/// Where a request goes on to.
pub(super) struct Backend {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) peer: Peer,
    pub(super) path_and_query: String,
}

impl Backend {
    fn unreachable(&self, error: &dyn std::fmt::Display) -> ApiError {
        let address = match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        };
        let dial = format!("dial tcp {address}: {error}");
        match self.peer {
            Peer::Kubelet => ApiError::new(
                500,
                "InternalError",
                format!("error dialing backend: {dial}"),
            ),
            Peer::Proxied { .. } => {
                ApiError::new(503, "ServiceUnavailable", format!("{UNREACHABLE}: {dial}"))
            }
        }
    }

    /// A failure after the connection was there.
    fn broken(&self, error: &dyn std::fmt::Display) -> ApiError {
        match self.peer {
            Peer::Kubelet => self.unreachable(error),
            Peer::Proxied { .. } => {
                ApiError::new(503, "ServiceUnavailable", format!("{UNREACHABLE}: {error}"))
            }
        }
    }
}

/// What a proxy says of a backend that cannot be reached (apimachinery, `util/proxy/transport.go`).
pub(super) const UNREACHABLE: &str = "error trying to reach service";

/// Why a connection could not be made, in the words of Go's net package, which people and programs know.
fn in_go_words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        std::io::ErrorKind::TimedOut => "connect: connection timed out".to_owned(),
        _ => error.to_string(),
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

async fn dial(nodes: &Nodes, backend: &Backend) -> Result<Box<dyn Stream>, ApiError> {
    let connect = TcpStream::connect((&*backend.host, backend.port));
    let stream = match tokio::time::timeout(DIAL_TIMEOUT, connect).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(backend.unreachable(&in_go_words(&error))),
        Err(_) => return Err(backend.unreachable(&"i/o timeout")),
    };
    // Small pieces of a terminal's traffic must not wait for each other.
    if let Err(error) = stream.set_nodelay(true) {
        // Slower, not wrong: small answers wait for more to send along.
        tracing::debug!(%error, "set TCP_NODELAY");
    }
    let connector = match backend.peer {
        Peer::Kubelet => &nodes.connector,
        Peer::Proxied { tls: true } => &nodes.unverified,
        Peer::Proxied { tls: false } => return Ok(Box::new(stream)),
    };
    let name = match backend.host.parse::<IpAddr>() {
        Ok(address) => ServerName::IpAddress(address.into()),
        Err(_) => ServerName::try_from(backend.host.clone())
            .map_err(|error| backend.unreachable(&error))?,
    };
    match tokio::time::timeout(DIAL_TIMEOUT, connector.connect(name, stream)).await {
        Ok(Ok(stream)) => Ok(Box::new(stream)),
        Ok(Err(error)) => Err(backend.unreachable(&error)),
        Err(_) => Err(backend.unreachable(&"TLS handshake timeout")),
    }
}

/// Passes a request on, and its answer back; an upgrade is passed through.
pub(super) async fn forward(
    mut call: Call,
    backend: Backend,
    body: RequestBody,
) -> Result<Answer, ApiError> {
    let stream = dial(&call.server.nodes, &backend).await?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .preserve_header_case(true)
        .handshake::<_, RequestBody>(TokioIo::new(stream))
        .await
        .map_err(|error| backend.broken(&error))?;
    tokio::spawn(connection.with_upgrades());
    let upgrade = call.parts.headers.contains_key(header::UPGRADE);
    let client = call.parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let mut request = Request::new(body);
    *request.method_mut() = call.parts.method.clone();
    *request.uri_mut() = backend
        .path_and_query
        .parse::<Uri>()
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    *request.headers_mut() = passed_on(&call.parts.headers, upgrade);
    let host = format!("{}:{}", backend.host, backend.port);
    request.headers_mut().insert(
        header::HOST,
        HeaderValue::from_str(&host).map_err(|error| ApiError::bad_request(error.to_string()))?,
    );
    let mut answer = sender
        .send_request(request)
        .await
        .map_err(|error| backend.broken(&error))?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = client else {
            return Err(ApiError::bad_request("Upgrade request required"));
        };
        let node = hyper::upgrade::on(&mut answer);
        let guard = call.server.metrics.long_running();
        let stop = call.server.stop.clone();
        tokio::spawn(async move {
            let _guard = guard;
            let (client, node) = match tokio::try_join!(client, node) {
                Ok(both) => both,
                Err(error) => return tracing::debug!(%error, "upgrade"),
            };
            let (mut client, mut node) = (TokioIo::new(client), TokioIo::new(node));
            // Both ends see the end of the stream when this is dropped; nothing else is held.
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut node) => {}
                () = stop.cancelled() => {}
            }
        });
        let mut response = Response::new(super::body::full(bytes::Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = answer.headers().clone();
        return Ok(response);
    }
    let (mut parts, body) = answer.into_parts();
    strip_hop_by_hop(&mut parts.headers, false);
    let body: ResponseBody = body
        .map_err(|error| Box::new(error) as BoxError)
        .boxed_unsync();
    Ok(Response::from_parts(parts, body))
}

/// The headers that a backend sees: not those of this connection, and no credentials.
fn passed_on(headers: &HeaderMap, upgrade: bool) -> HeaderMap {
    let mut headers = headers.clone();
    headers.remove(header::AUTHORIZATION);
    headers.remove(header::HOST);
    strip_hop_by_hop(&mut headers, upgrade);
    headers
}

fn strip_hop_by_hop(headers: &mut HeaderMap, upgrade: bool) {
    for name in [
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "te",
        "trailer",
        "transfer-encoding",
    ] {
        headers.remove(name);
    }
    if !upgrade {
        headers.remove(header::CONNECTION);
        headers.remove(header::UPGRADE);
    }
}

/// The kubelet of a node.
pub(super) fn kubelet(
    call: &Call,
    node: &str,
    path_and_query: String,
) -> Result<Backend, ApiError> {
    let nodes = call.server.registry.collection("minions");
    let entry = nodes
        .and_then(|nodes| nodes.get(node))
        .ok_or_else(|| ApiError::not_found("", "nodes", node))?;
    let node = entry.parse();
    let addresses = node["status"]["addresses"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let host = ["InternalIP", "ExternalIP", "Hostname"]
        .iter()
        .find_map(|kind| {
            addresses.iter().find(|address| address["type"] == *kind)?["address"].as_str()
        })
        .ok_or_else(|| {
            ApiError::new(
                500,
                "InternalError",
                "no preferred addresses found; known addresses: []",
            )
        })?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        .as_u64()
        .unwrap_or(KUBELET_PORT);
    Ok(Backend {
        host: host.to_owned(),
        port: u16::try_from(port).unwrap_or(KUBELET_PORT as u16),
        peer: Peer::Kubelet,
        path_and_query,
    })
}

pub(super) fn pod(target: &Target) -> Result<Value, ApiError> {
    let entry = target
        .collection
        .get(&target.key())
        .ok_or_else(|| target.not_found())?;
    Ok(entry.parse())
}

fn node_of<'a>(target: &Target, pod: &'a Value) -> Result<&'a str, ApiError> {
    pod["spec"]["nodeName"]
        .as_str()
        .filter(|name| !name.is_empty())
        .ok_or_else(|| {
            ApiError::bad_request(format!("pod {} does not have a host assigned", target.name))
        })
}

/// The container that is asked for, or the only one.
fn container(target: &Target, pod: &Value, asked: &str) -> Result<String, ApiError> {
    let names = |list: &str| -> Vec<String> {
        let list = pod["spec"][list].as_array().into_iter().flatten();
        list.filter_map(|container| container["name"].as_str().map(str::to_owned))
            .collect()
    };
    let (containers, init) = (names("containers"), names("initContainers"));
    if asked.is_empty() {
        if let [only] = &containers[..] {
            return Ok(only.clone());
        }
        let mut message = format!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            target.name,
            containers.join(" ")
        );
        if !init.is_empty() {
            message.push_str(&format!(
                " or one of the init containers: [{}]",
                init.join(" ")
            ));
        }
        return Err(ApiError::bad_request(message));
    }
    let known = containers
        .iter()
        .chain(&init)
        .chain(&names("ephemeralContainers"))
        .any(|name| name == asked);
    if known {
        return Ok(asked.to_owned());
    }
    Err(ApiError::bad_request(format!(
        "container {asked} is not valid for pod {}",
        target.name
    )))
}

fn no_body() -> RequestBody {
    super::body::full(bytes::Bytes::new())
}

/// `GET pods/<name>/log`.
pub async fn log(mut call: Call, target: Target) -> Result<Answer, ApiError> {
    check_log_options(&call.query)?;
    let pod = pod(&target)?;
    let container = container(&target, &pod, call.query.text("container"))?;
    let socket = websocket::asked(&mut call.parts)?;
    let server = call.server.clone();
    // Nothing has run yet, so nothing was said.
    let Ok(node) = node_of(&target, &pod) else {
        return Ok(match socket {
            Some(socket) => socket.stream(&server, no_body()),
            None => super::respond::text(StatusCode::OK, ""),
        });
    };
    let query = &call.query;
    let mut passed = Vec::new();
    for name in ["follow", "previous", "timestamps"] {
        if query.flag(name) {
            passed.push(format!("{name}=true"));
        }
    }
    for name in [
        "sinceSeconds",
        "sinceTime",
        "tailLines",
        "limitBytes",
        "stream",
    ] {
        if !query.text(name).is_empty() {
            passed.push(format!("{name}={}", encode(query.text(name))));
        }
    }
    let path = format!(
        "/containerLogs/{}/{}/{container}?{}",
        target.namespace,
        target.name,
        passed.join("&")
    );
    let backend = kubelet(&call, node, path)?;
    let mut answer = forward(call, backend, no_body()).await?;
    if !answer.status().is_success() {
        return Err(from_kubelet(answer).await);
    }
    if let Some(socket) = socket {
        return Ok(socket.stream(&server, answer.into_body()));
    }
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(answer)
}

/// A kubelet's refusal as a Status (apimachinery, `api/errors.NewGenericServerResponse`).
async fn from_kubelet(answer: Answer) -> ApiError {
    let code = answer.status().as_u16();
    let text = match answer.into_body().collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    match code {
        400 => ApiError::bad_request(text),
        404 => ApiError::new(
            404,
            "NotFound",
            format!("the server could not find the requested resource ( {text})"),
        ),
        _ => ApiError::new(500, "InternalError", text),
    }
}

fn check_log_options(query: &Query) -> Result<(), ApiError> {
    let mut errors = Vec::new();
    for (name, least) in [("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)] {
        if let Some(number) = query.number(name)?
            && number < least
        {
            let detail = if least == 0 {
                "must be greater than or equal to 0"
            } else {
                "must be greater than 0"
            };
            errors.push(FieldError::invalid(name, &number.into(), detail));
        }
    }
    if !query.text("sinceSeconds").is_empty() && !query.text("sinceTime").is_empty() {
        errors.push(FieldError::forbidden(
            "",
            "at most one of `sinceTime` or `sinceSeconds` may be specified",
        ));
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(ApiError::invalid("", "PodLogOptions", "", &errors))
    }
}

/// `pods/<name>/exec` and `attach`.
pub async fn exec(call: Call, target: Target, what: &str) -> Result<Answer, ApiError> {
    if loses_websocket_output(&call.parts.headers) {
        return Err(ApiError::bad_request(
            "this version of kubectl loses output over WebSocket; use SPDY",
        ));
    }
    let pod = pod(&target)?;
    let query = &call.query;
    let container = container(&target, &pod, query.text("container"))?;
    let node = node_of(&target, &pod)?;
    if what == "exec" && query.all("command").next().is_none() {
        return Err(ApiError::bad_request(
            "you must specify at least 1 command for the container",
        ));
    }
    // The kubelet's own names for the streams.
    let mut passed: Vec<String> = [
        ("stdin", "input"),
        ("stdout", "output"),
        ("stderr", "error"),
        ("tty", "tty"),
    ]
    .iter()
    .filter(|(name, _)| query.flag(name))
    .map(|(_, own)| format!("{own}=1"))
    .collect();
    passed.extend(
        query
            .all("command")
            .map(|word| format!("command={}", encode(word))),
    );
    let path = format!(
        "/{what}/{}/{}/{container}?{}",
        target.namespace,
        target.name,
        passed.join("&")
    );
    let backend = kubelet(&call, node, path)?;
    upgraded(&call)?;
    forward(call, backend, no_body()).await
}

/// Refuses a request that asks for no other protocol.
fn upgraded(call: &Call) -> Result<(), ApiError> {
    let headers = &call.parts.headers;
    let connection = headers.get_all(header::CONNECTION).iter();
    let asks = connection
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.to_ascii_lowercase().contains("upgrade"));
    if asks && headers.contains_key(header::UPGRADE) {
        return Ok(());
    }
    Err(ApiError::bad_request("Upgrade request required"))
}

/// `pods/<name>/portforward`.
pub async fn port_forward(call: Call, target: Target) -> Result<Answer, ApiError> {
    let pod = pod(&target)?;
    let node = node_of(&target, &pod)?;
    let ports: Vec<String> = call
        .query
        .all("ports")
        .map(|port| format!("port={}", encode(port)))
        .collect();
    let path = format!(
        "/portForward/{}/{}?{}",
        target.namespace,
        target.name,
        ports.join("&")
    );
    let backend = kubelet(&call, node, path)?;
    upgraded(&call)?;
    forward(call, backend, no_body()).await
}
