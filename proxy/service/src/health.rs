//! What load balancers ask each node: has it endpoints of this service? (`healthCheckNodePort`)
//!
//! One listener for each service with `externalTrafficPolicy: Local` and a port for it; it answers 200 with endpoints, 503 without,
//! in kube-proxy's words. Source: kubernetes, `pkg/proxy/healthcheck/service_health.go`.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Response, StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use crate::objects::{Service, ServiceKey, Slice, TrafficPolicy};

/// What one service's listener says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    pub port: u16,
    /// How many addresses of this node are ready to serve.
    pub endpoints: usize,
}

/// The health of a service on a node; `None` if nobody is to ask for it.
pub(crate) fn health<'a>(
    node: &str,
    service: &Service,
    slices: impl Iterator<Item = &'a Slice>,
) -> Option<Health> {
    let port = service.health_port?;
    if service.external_policy != TrafficPolicy::Local {
        return None;
    }
    let here: BTreeSet<IpAddr> = slices
        .flat_map(|slice| &slice.endpoints)
        .filter(|endpoint| endpoint.ready && endpoint.node.as_deref() == Some(node))
        .map(|endpoint| endpoint.ip)
        .collect();
    Some(Health {
        port,
        endpoints: here.len(),
    })
}

/// The listeners. They end with this value.
#[derive(Default)]
pub(crate) struct Listeners(HashMap<ServiceKey, Listener>);

struct Listener {
    port: u16,
    endpoints: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listeners {
    /// Brings the listener of one service to what it is to say. A port that somebody else has is told in the log, and tried
    /// again with the next change of the service.
    pub(crate) async fn set(&mut self, key: &ServiceKey, health: Option<Health>) {
        let Some(Health { port, endpoints }) = health else {
            self.0.remove(key);
            return;
        };
        if let Some(listener) = self.0.get(key)
            && listener.port == port
        {
            listener.endpoints.store(endpoints, Ordering::Relaxed);
            return;
        }
        self.0.remove(key);
        let socket = match listen(port).await {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%error, port, service = %key, "listen for health checks");
                return;
            }
        };
        let endpoints = Arc::new(AtomicUsize::new(endpoints));
        let listener = Listener {
            port,
            task: tokio::spawn(serve(socket, key.clone(), endpoints.clone())),
            endpoints,
        };
        self.0.insert(key.clone(), listener);
    }
}

/// On all addresses; of IPv4 only where the kernel has no IPv6.
async fn listen(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        other => other,
    }
}

async fn serve(socket: TcpListener, key: ServiceKey, endpoints: Arc<AtomicUsize>) {
    // Connections end with the listener.
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = socket.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, service = %key, "accept a health check");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                    continue;
                }
            },
            // Only takes leave of one that has ended.
            Some(_) = connections.join_next() => continue,
        };
        let (key, endpoints) = (key.clone(), endpoints.clone());
        let answer = service_fn(move |_| {
            let response = response(&key, endpoints.load(Ordering::Relaxed));
            async move { Ok::<_, Infallible>(response) }
        });
        connections.spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), answer);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "health check");
            }
        });
    }
}

fn response(key: &ServiceKey, endpoints: usize) -> Response<String> {
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {:?},\n\t\t\"name\": {:?}\n\t}},\n\t\"localEndpoints\": {endpoints},\n\t\"serviceProxyHealthy\": true\n}}",
        key.namespace, key.name
    );
    let mut response = Response::new(body);
    if endpoints == 0 {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    let mut put = |name, value| headers.insert(http::HeaderName::from_static(name), value);
    put(
        "content-type",
        http::HeaderValue::from_static("application/json"),
    );
    put(
        "x-content-type-options",
        http::HeaderValue::from_static("nosniff"),
    );
    put("x-load-balancing-endpoint-weight", endpoints.into());
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::SliceEndpoint;

    #[test]
    fn only_ready_endpoints_of_this_node_count_and_each_address_once() {
        let endpoint = |ip: &str, node: &str, ready| SliceEndpoint {
            ip: ip.parse().unwrap(),
            ready,
            serving: ready,
            terminating: false,
            hostname: None,
            node: Some(node.to_owned()),
        };
        let slice = Slice {
            service: ServiceKey::new("default", "web"),
            name: "web-1".to_owned(),
            ports: Vec::new(),
            endpoints: vec![
                endpoint("10.42.0.2", "here", true),
                endpoint("10.42.0.3", "here", false),
                endpoint("10.42.1.2", "there", true),
            ],
        };
        let slices = [slice.clone(), slice];
        let mut service = Service {
            health_port: Some(32000),
            external_policy: TrafficPolicy::Local,
            ..Service::default()
        };
        let expected = Health {
            port: 32000,
            endpoints: 1,
        };
        assert_eq!(health("here", &service, slices.iter()), Some(expected));
        assert_eq!(health("far", &service, slices.iter()).unwrap().endpoints, 0);
        service.external_policy = TrafficPolicy::Cluster;
        assert_eq!(health("here", &service, slices.iter()), None);
    }

    #[test]
    fn the_answer_is_kube_proxys() {
        let key = ServiceKey::new("default", "web");
        let answer = response(&key, 2);
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["x-load-balancing-endpoint-weight"], "2");
        assert!(
            answer.body().contains("\"localEndpoints\": 2"),
            "{}",
            answer.body()
        );
        assert_eq!(response(&key, 0).status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
