//! Proxies to pods, services and nodes.
//!
//! Source: kubernetes, pkg/registry/core/{pod,service,node} (`ResourceLocation`), apimachinery `util/proxy`.

use std::net::IpAddr;

use http::header::{self, HeaderValue};
use http::{Method, Response, StatusCode};
use rand::seq::IndexedRandom as _;
use serde_json::Value;

use super::body::RequestBody;
use super::dispatch::Call;
use super::node::{self, Backend, Peer, UNREACHABLE};
use super::path::ResourcePath;
use super::respond::Answer;
use crate::registry::write::Target;
use crate::status::ApiError;
use crate::strategy::Proxied;

/// A name of the form `[<scheme>:]<name>[:<port>]`.
#[derive(Debug, PartialEq, Eq)]
struct Named<'a> {
    tls: bool,
    name: &'a str,
    port: &'a str,
}

/// Takes a name apart (apimachinery, `SplitSchemeNamePort`).
fn split(id: &str) -> Option<Named<'_>> {
    let parts: Vec<&str> = id.split(':').collect();
    let (scheme, name, port) = match parts[..] {
        [name] => ("", name, ""),
        [name, port] => ("", name, port),
        [scheme, name, port] => (scheme, name, port),
        _ => return None,
    };
    let tls = match scheme {
        "" | "http" => false,
        "https" => true,
        _ => return None,
    };
    (!name.is_empty()).then_some(Named { tls, name, port })
}

/// `proxy` of nodes, pods and services.
pub async fn answer(
    call: Call,
    target: Target,
    proxied: Proxied,
    path: &ResourcePath,
    body: RequestBody,
) -> Result<Answer, ApiError> {
    let id = target.name.clone();
    let Some(named) = split(&id) else {
        let message = format!("invalid {} request {id:?}", target.resource.singular);
        return Err(ApiError::bad_request(message));
    };
    let target = Target {
        name: named.name.to_owned(),
        ..target
    };
    let query = call.parts.uri.query().map(|query| format!("?{query}"));
    let query = query.unwrap_or_default();
    let path_and_query = match &*path.rest {
        "" => format!("/{query}"),
        rest => format!("{rest}{query}"),
    };
    let backend = match proxied {
        Proxied::Node => node_backend(&call, &named, path_and_query)?,
        Proxied::Pod => {
            let pod = node::pod(&target)?;
            let (host, port) = (pod_ip(&pod)?, pod_port(&pod, &named)?);
            backend(host, port, named.tls, path_and_query)
        }
        Proxied::Service => {
            let (host, port) = service_address(&call, &target, &named, &id)?;
            backend(host, port, named.tls, path_and_query)
        }
    };
    let reads = matches!(call.parts.method, Method::GET | Method::HEAD);
    if path.rest.is_empty() && reads && !call.parts.headers.contains_key(header::UPGRADE) {
        // Relative links of the root page lead to below the proxy only from a path that ends with a slash.
        let location = format!("{}/{query}", call.parts.uri.path());
        let location = HeaderValue::from_str(&location)
            .map_err(|error| ApiError::bad_request(error.to_string()))?;
        let mut response = Response::new(super::body::full(bytes::Bytes::new()));
        *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
        response.headers_mut().insert(header::LOCATION, location);
        return Ok(response);
    }
    node::forward(call, backend, body).await
}

fn backend(host: IpAddr, port: u16, tls: bool, path_and_query: String) -> Backend {
    Backend {
        host: host.to_string(),
        port,
        peer: Peer::Proxied { tls },
        path_and_query,
    }
}

fn unavailable(message: String) -> ApiError {
    ApiError::new(503, "ServiceUnavailable", message)
}

/// The kubelet of a node, or another port of it.
fn node_backend(call: &Call, named: &Named<'_>, path: String) -> Result<Backend, ApiError> {
    let kubelet = node::kubelet(call, named.name, path)?;
    if named.port.is_empty() || named.port == kubelet.port.to_string() {
        return Ok(kubelet);
    }
    Ok(Backend {
        port: dialed(named.port)?,
        peer: Peer::Proxied { tls: named.tls },
        ..kubelet
    })
}

/// Fails for addresses that are not those of one machine on a network: what listens on our own loopback is nobody's to reach.
fn proxyable(text: &str) -> Result<IpAddr, ApiError> {
    let refused = || ApiError::bad_request("address not allowed");
    let ip: IpAddr = text.parse().map_err(|_| refused())?;
    let global_unicast = match ip.to_canonical() {
        IpAddr::V4(ip) => {
            !(ip.is_broadcast()
                || ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_multicast()
                || ip.is_link_local())
        }
        IpAddr::V6(ip) => {
            !(ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_multicast()
                || ip.is_unicast_link_local())
        }
    };
    if global_unicast {
        Ok(ip)
    } else {
        Err(refused())
    }
}

fn pod_ip(pod: &Value) -> Result<IpAddr, ApiError> {
    let first = pod["status"]["podIPs"][0]["ip"].as_str();
    proxyable(
        first
            .or(pod["status"]["podIP"].as_str())
            .unwrap_or_default(),
    )
}

/// The port that is asked for, else the first that a container of the pod has, else that of the scheme.
fn pod_port(pod: &Value, named: &Named<'_>) -> Result<u16, ApiError> {
    if !named.port.is_empty() {
        return dialed(named.port);
    }
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let first = containers
        .flat_map(|container| container["ports"].as_array().into_iter().flatten())
        .find_map(|port| u16::try_from(port["containerPort"].as_u64()?).ok());
    Ok(first.unwrap_or(if named.tls { 443 } else { 80 }))
}

/// A port as Go dials it: a number, or one of the names that HTTP has for its own.
fn dialed(port: &str) -> Result<u16, ApiError> {
    match port {
        "http" => return Ok(80),
        "https" => return Ok(443),
        _ => {}
    }
    if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        let message = format!("{UNREACHABLE}: dial tcp: lookup tcp/{port}: unknown port");
        return Err(unavailable(message));
    }
    port.parse().map_err(|_| {
        unavailable(format!(
            "{UNREACHABLE}: dial tcp: address {port}: invalid port"
        ))
    })
}

/// A ready endpoint of a service's port, which is named or numbered; a service with one port needs none named.
fn service_address(
    call: &Call,
    target: &Target,
    named: &Named<'_>,
    id: &str,
) -> Result<(IpAddr, u16), ApiError> {
    let entry = target
        .collection
        .get(&target.key())
        .ok_or_else(|| target.not_found())?;
    let service = entry.parse();
    let ports = service["spec"]["ports"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let name_of = |port: &Value| port["name"].as_str().unwrap_or_default().to_owned();
    let name = match (named.port.parse::<i64>(), ports) {
        (Ok(number), _) => {
            let found = ports.iter().find(|port| port["port"] == number);
            found.map(name_of).ok_or_else(|| {
                unavailable(format!(
                    "no service port {number} found for service {:?}",
                    target.name
                ))
            })?
        }
        (Err(_), [only]) if named.port.is_empty() => name_of(only),
        (Err(_), _) => named.port.to_owned(),
    };
    let registry = &call.server.registry;
    let slices = registry
        .collection("endpointslices")
        .map(|slices| slices.snapshot(&format!("{}/", target.namespace), ""));
    let pods = registry.collection("pods");
    let mut none = true;
    let mut found = Vec::new();
    for slice in slices.into_iter().flat_map(|snapshot| snapshot.entries) {
        let own = slice
            .labels
            .iter()
            .any(|(key, value)| &**key == "kubernetes.io/service-name" && **value == *target.name);
        if !own {
            continue;
        }
        let slice = slice.parse();
        let of_port = slice["ports"].as_array().into_iter().flatten();
        let number = of_port
            .filter(|port| name_of(port) == name)
            .find_map(|port| u16::try_from(port["port"].as_u64()?).ok());
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            if endpoint["conditions"]["ready"] == false {
                continue;
            }
            none = false;
            let is_of_pod = |ip: &str| {
                let pod = &endpoint["targetRef"]["name"];
                let key = format!("{}/{}", target.namespace, pod.as_str().unwrap_or_default());
                let entry = pods.as_ref().and_then(|pods| pods.get(&key));
                entry.is_some_and(|entry| has_address(&entry.parse(), ip))
            };
            // Only to pods of the namespace: others' addresses are written into slices by hand, and could be anything.
            let ip = endpoint["addresses"][0].as_str().filter(|ip| is_of_pod(ip));
            if let (Some(Ok(ip)), Some(number)) = (ip.map(proxyable), number) {
                found.push((ip, number));
            }
        }
    }
    let service = if none { &*target.name } else { id };
    found
        .choose(&mut rand::rng())
        .copied()
        .ok_or_else(|| unavailable(format!("no endpoints available for service {service:?}")))
}

fn has_address(pod: &Value, ip: &str) -> bool {
    let all = pod["status"]["podIPs"].as_array().into_iter().flatten();
    pod["status"]["podIP"] == ip || all.into_iter().any(|of_pod| of_pod["ip"] == ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_scheme_and_a_port_if_they_like() {
        let named = |tls, name, port| Some(Named { tls, name, port });
        #[rustfmt::skip] // A table.
        let rows = [
            ("p", named(false, "p", "")),
            ("p:80", named(false, "p", "80")),
            ("p:", named(false, "p", "")),
            ("http:p:", named(false, "p", "")),
            ("https:p:", named(true, "p", "")),
            ("https:p:web", named(true, "p", "web")),
            (":p:80", named(false, "p", "80")),
            ("ftp:p:80", None),
            ("a:b:c:d", None),
            (":80", None),
            ("", None),
        ];
        for (id, expected) in rows {
            assert_eq!(split(id), expected, "{id}");
        }
    }

    #[test]
    fn a_pod_without_a_port_is_asked_at_its_first_or_at_that_of_the_scheme() {
        use serde_json::json;
        let none =
            json!({ "spec": { "containers": [{ "name": "a" }, { "name": "b", "ports": [] }] } });
        let some = json!({ "spec": { "containers": [
            { "name": "a" },
            { "name": "b", "ports": [{ "containerPort": 8080 }, { "containerPort": 9090 }] },
        ] } });
        for (pod, id, expected) in [
            (&none, "p", 80),
            (&none, "http:p:", 80),
            (&none, "https:p:", 443),
            (&none, "https:p:8443", 8443),
            (&some, "p", 8080),
            (&some, "https:p:", 8080),
            (&some, "p:9090", 9090),
        ] {
            let named = split(id).expect("a name");
            assert_eq!(pod_port(pod, &named).ok(), Some(expected), "{id}");
        }
    }

    #[test]
    fn ports_are_dialed_as_go_does() {
        assert_eq!(dialed("8080").ok(), Some(8080));
        assert_eq!(dialed("https").ok(), Some(443));
        for (port, end) in [
            ("70000", "dial tcp: address 70000: invalid port"),
            ("web", "dial tcp: lookup tcp/web: unknown port"),
            ("+80", "dial tcp: lookup tcp/+80: unknown port"),
        ] {
            let error = dialed(port).expect_err("refused");
            assert_eq!(error.code, 503);
            assert_eq!(error.message, format!("{UNREACHABLE}: {end}"));
        }
    }

    #[test]
    fn only_addresses_of_machines_are_proxied_to() {
        for good in ["10.1.2.3", "192.168.0.1", "8.8.8.8", "fd00::1"] {
            assert!(proxyable(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "169.254.169.254",
            "fe80::1",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
        ] {
            let error = proxyable(bad).expect_err("refused");
            assert_eq!(
                (error.code, &*error.message),
                (400, "address not allowed"),
                "{bad}"
            );
        }
    }
}
