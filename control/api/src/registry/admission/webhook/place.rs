//! Where a webhook listens: an address of its own, or the endpoints of a service.

use http::Uri;
use serde_json::Value;

use crate::registry::Registry;

/// The label of an EndpointSlice that names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Where a webhook listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The name that its certificate must have, and that its requests carry.
    pub host: String,
    /// The port that goes with it.
    pub port: Option<u16>,
    /// The path of the requests.
    pub path: String,
    service: Option<Service>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Service {
    namespace: String,
    name: String,
}

/// Why an address cannot be one.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The address is not a URL.
    #[error("Unparsable URL")]
    Url {
        /// Why.
        source: http::uri::InvalidUri,
    },
    /// The address is not one of HTTPS.
    #[error("{0:?} is not a URL with the scheme https and a host")]
    NotHttps(String),
    /// It is unclear what is meant.
    #[error("webhook configuration must have either service or URL")]
    NeitherOrBoth,
}

/// Why a service leads nowhere, in the words of kube-apiserver (apiserver, `util/proxy`).
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// There is no such service.
    #[error("service {0:?} not found")]
    Service(String),
    /// The service has no such port.
    #[error("no service port {port} found for service {service:?}")]
    Port {
        /// The port.
        port: u16,
        /// The service.
        service: String,
    },
    /// No endpoint is ready.
    #[error("no endpoints available for service {0:?}")]
    Endpoints(String),
}

/// A host and a port to connect to.
pub type Endpoint = (String, u16);

impl Place {
    /// A URL with the scheme https.
    ///
    /// # Errors
    ///
    /// If it is not one.
    pub fn url(url: &str) -> Result<Self, PlaceError> {
        let uri: Uri = url.parse().map_err(|source| PlaceError::Url { source })?;
        let host = uri.host().filter(|host| !host.is_empty());
        match (uri.scheme_str(), host) {
            (Some("https"), Some(host)) => Ok(Self {
                host: host.trim_matches(['[', ']']).to_owned(),
                port: uri.port_u16(),
                path: clean(uri.path()),
                service: None,
            }),
            _ => Err(PlaceError::NotHttps(url.to_owned())),
        }
    }

    /// A port of a service.
    pub fn service(namespace: &str, name: &str, path: &str, port: u16) -> Self {
        Self {
            host: format!("{name}.{namespace}.svc"),
            port: Some(port),
            path: clean(path),
            service: Some(Service {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
        }
    }

    /// Host and port, as the requests name them.
    pub fn authority(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        match self.port {
            Some(port) => format!("{host}:{port}"),
            None => host,
        }
    }

    /// Where to connect to: any of these.
    ///
    /// Services have ready endpoints; their cluster addresses are not asked, as this machine may have no route to them. Unlike a
    /// proxy, this goes to whatever a slice names: who answers there must still show the certificate of the service.
    ///
    /// # Errors
    ///
    /// If there is nobody.
    pub fn endpoints(&self, registry: &Registry) -> Result<Vec<Endpoint>, ResolveError> {
        let Some(service) = &self.service else {
            return Ok(vec![(self.host.clone(), self.port.unwrap_or(443))]);
        };
        service.endpoints(registry, self.port.unwrap_or(443))
    }
}

impl Service {
    fn endpoints(&self, registry: &Registry, port: u16) -> Result<Vec<Endpoint>, ResolveError> {
        let Self { namespace, name } = self;
        let services = registry.collection("services/specs");
        let entry = services.and_then(|services| services.get(&format!("{namespace}/{name}")));
        let service = entry
            .ok_or_else(|| ResolveError::Service(name.clone()))?
            .parse();
        if service["spec"]["type"] == "ExternalName" {
            let external = service["spec"]["externalName"].as_str().unwrap_or_default();
            return Ok(vec![(external.to_owned(), port)]);
        }
        let name_of = |port: &Value| port["name"].as_str().unwrap_or_default().to_owned();
        let mut ports = service["spec"]["ports"].as_array().into_iter().flatten();
        let named = ports
            .find(|of_service| of_service["port"] == port)
            .map(name_of)
            .ok_or_else(|| ResolveError::Port {
                port,
                service: name.clone(),
            })?;
        let slices = registry.collection("endpointslices");
        let slices = slices.map(|slices| slices.snapshot(&format!("{namespace}/"), "").entries);
        let mut found = Vec::new();
        for slice in slices.into_iter().flatten() {
            let mut labels = slice.labels.iter();
            if !labels.any(|(key, value)| **key == *SERVICE_NAME && **value == **name) {
                continue;
            }
            let slice = slice.parse();
            let mut ports = slice["ports"].as_array().into_iter().flatten();
            let number = ports
                .find(|port| name_of(port) == named)
                .and_then(|port| u16::try_from(port["port"].as_u64()?).ok());
            let endpoints = slice["endpoints"].as_array().into_iter().flatten();
            let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] != false);
            found.extend(ready.filter_map(|endpoint| {
                Some((endpoint["addresses"][0].as_str()?.to_owned(), number?))
            }));
        }
        if found.is_empty() {
            return Err(ResolveError::Endpoints(name.clone()));
        }
        Ok(found)
    }
}

/// A path as Go's `path.Join` leaves it: absolute, without empty parts, without dots, without a slash at the end.
fn clean(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_host_port_and_path() {
        for (url, authority, endpoint, path) in [
            ("https://a.example", "a.example", ("a.example", 443), "/"),
            (
                "https://a.example:8443/x/",
                "a.example:8443",
                ("a.example", 8443),
                "/x",
            ),
            ("https://[::1]:1/a//b", "[::1]:1", ("::1", 1), "/a/b"),
        ] {
            let place = Place::url(url).expect(url);
            assert_eq!((&*place.authority(), &*place.path), (authority, path));
            let port = place.port.unwrap_or(443);
            assert_eq!((&*place.host, port), endpoint, "{url}");
        }
        for url in [
            "http://a.example",
            "a.example",
            "https://",
            "/x",
            "https:/x",
        ] {
            assert!(Place::url(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_service_has_the_name_that_its_certificate_must_show() {
        let place = Place::service("ns", "svc", "validate/../mutate/", 443);
        assert_eq!(place.host, "svc.ns.svc");
        assert_eq!(
            (&*place.authority(), &*place.path),
            ("svc.ns.svc:443", "/mutate")
        );
    }
}
