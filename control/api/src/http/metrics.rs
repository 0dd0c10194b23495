//! The server's metrics, under kube-apiserver's names.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::{Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry as Metrics_;

use super::path::Route;
use super::query::Query;
use crate::registry::Registry;

/// kube-apiserver's buckets, in seconds, without every second one.
const BUCKETS: [f64; 12] = [
    0.001, 0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 10.0, 60.0,
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Served {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Timed {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Stored {
    resource: String,
}

/// What a request counts as.
pub struct Labels {
    timed: Timed,
    long_running: bool,
}

/// The metrics.
pub struct Metrics {
    registry: Metrics_,
    requests: Family<Served, Counter<u64, AtomicU64>>,
    durations: Family<Timed, Histogram, fn() -> Histogram>,
    long_running: Gauge,
    objects: Family<Stored, Gauge>,
}

/// The labels of a request.
pub fn labels(method: &Method, route: &Route, query: &Query) -> Labels {
    let (group, version, resource, subresource, verb) = match route {
        Route::Resource(path) => {
            let verb = match path.verb(method, query) {
                "create" => "POST",
                "update" => "PUT",
                "patch" => "PATCH",
                "delete" => "DELETE",
                "deletecollection" => "DELETECOLLECTION",
                "watch" => "WATCH",
                "list" => "LIST",
                _ => "GET",
            };
            let words = (
                path.group.clone(),
                path.version.clone(),
                path.resource.clone(),
                path.subresource.clone(),
            );
            (words.0, words.1, words.2, words.3, verb)
        }
        Route::Other => <_>::default(),
    };
    let verb = if verb.is_empty() { "GET" } else { verb };
    Labels {
        long_running: matches!(route, Route::Resource(path) if path.waits(method, query)),
        timed: Timed {
            verb,
            group,
            version,
            resource,
            subresource,
        },
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Metrics_::default();
        let requests = Family::default();
        let durations: Family<Timed, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let (long_running, objects) = (Gauge::default(), Family::default());
        registry.register(
            "apiserver_request",
            "Requests by verb, group, version, resource, subresource and HTTP response code",
            requests.clone(),
        );
        registry.register(
            "apiserver_request_duration_seconds",
            "Response latency in seconds by verb, group, version, resource and subresource",
            durations.clone(),
        );
        registry.register(
            "apiserver_longrunning_requests",
            "Running watches",
            long_running.clone(),
        );
        registry.register(
            "apiserver_storage_objects",
            "Stored objects by resource",
            objects.clone(),
        );
        Self {
            registry,
            requests,
            durations,
            long_running,
            objects,
        }
    }
}

/// Counts a long-running request while it is there.
pub struct LongRunning(Gauge);

impl Drop for LongRunning {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// Where others register theirs.
    pub fn registry(&mut self) -> &mut Metrics_ {
        &mut self.registry
    }

    /// Counts a request. Requests for resources that do not exist are counted together, so that nobody can fill the memory.
    pub fn observe(&self, labels: Labels, code: StatusCode, took: Duration) {
        let mut timed = labels.timed;
        if code == StatusCode::NOT_FOUND
            || code == StatusCode::UNAUTHORIZED
            || code == StatusCode::FORBIDDEN
        {
            timed = Timed {
                verb: timed.verb,
                ..Timed::none()
            };
        }
        if !labels.long_running {
            self.durations
                .get_or_create(&timed)
                .observe(took.as_secs_f64());
        }
        let Timed {
            verb,
            group,
            version,
            resource,
            subresource,
        } = timed;
        let served = Served {
            verb,
            group,
            version,
            resource,
            subresource,
            code: code.as_u16(),
        };
        self.requests.get_or_create(&served).inc();
    }

    /// Counts a long-running request until the result is dropped.
    pub fn long_running(self: &Arc<Self>) -> LongRunning {
        self.long_running.inc();
        LongRunning(self.long_running.clone())
    }

    /// All metrics as text.
    pub fn render(&self, registry: &Registry) -> String {
        for collection in registry.table().collections() {
            let stored = Stored {
                resource: collection.prefix.clone(),
            };
            self.objects
                .get_or_create(&stored)
                .set(i64::try_from(collection.len()).unwrap_or(i64::MAX));
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("writing to a string cannot fail");
        text
    }
}

impl Timed {
    fn none() -> Self {
        let empty = String::new;
        Self {
            verb: "",
            group: empty(),
            version: empty(),
            resource: empty(),
            subresource: empty(),
        }
    }
}
