//! `/healthz`, `/livez` and `/readyz`: what is looked at, and how it is told (apiserver, `pkg/server/healthz`).
//!
//! `/healthz` also tells of the loops of scheduler and controllers, as kube-controller-manager's own does. The others do not: a
//! loop that keeps breaking down is no reason to send requests elsewhere.

use std::time::Duration;

use http::StatusCode;
use http::header::{HeaderName, HeaderValue};

use super::dispatch::Call;
use super::respond::{self, Answer};
use crate::server::Inner;
use crate::status::ApiError;

/// How long the store may take to answer (kube-apiserver's `--etcd-healthcheck-timeout`).
const STORE_TIMEOUT: Duration = Duration::from_secs(2);

/// One of the things that are looked at, by kube-apiserver's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    /// Requests are answered at all.
    Ping,
    /// The log takes lines.
    Log,
    /// The store answers reads and takes writes.
    Etcd,
    /// The same, for whoever sends requests here.
    EtcdReadiness,
    /// The collections follow the store.
    InformerSync,
    /// Every kind's collection is filled.
    StorageReadiness,
    /// The namespaces that every cluster has were made.
    SystemNamespaces,
    /// The service `kubernetes` was made.
    Bootstrap,
    /// The default roles and bindings were made.
    BootstrapRoles,
    /// The server is not about to end.
    Shutdown,
}

use Check::*;

#[rustfmt::skip] // A table: what each endpoint looks at, in this order.
static CHECKS: [(&str, Check, &[&str]); 10] = [
    ("ping",                                              Ping,             &["healthz", "livez", "readyz"]),
    ("log",                                               Log,              &["healthz", "livez", "readyz"]),
    ("etcd",                                              Etcd,             &["healthz", "livez", "readyz"]),
    ("etcd-readiness",                                    EtcdReadiness,    &["readyz"]),
    ("informer-sync",                                     InformerSync,     &["readyz"]),
    ("poststarthook/storage-readiness",                   StorageReadiness, &["healthz", "livez", "readyz"]),
    ("poststarthook/start-system-namespaces-controller",  SystemNamespaces, &["healthz", "livez", "readyz"]),
    ("poststarthook/bootstrap-controller",                Bootstrap,        &["healthz", "livez", "readyz"]),
    ("poststarthook/rbac/bootstrap-roles",                BootstrapRoles,   &["healthz", "livez", "readyz"]),
    ("shutdown",                                          Shutdown,         &["readyz"]),
];

impl Check {
    /// Why it fails, for the log: the endpoints are open to everybody and tell only that it does.
    async fn look(self, server: &Inner) -> Result<(), String> {
        let registry = &server.registry;
        match self {
            Ping | Log => Ok(()),
            Etcd | EtcdReadiness => {
                let asked = tokio::time::timeout(STORE_TIMEOUT, registry.store.check()).await;
                match asked {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(error)) => Err(chain(&error)),
                    Err(_) => Err(format!("no answer within {STORE_TIMEOUT:?}")),
                }
            }
            InformerSync if registry.feed.is_following() => Ok(()),
            InformerSync => Err("the store is being read anew".to_owned()),
            StorageReadiness => {
                let table = registry.table();
                let empty = table.collections().filter(|c| !c.is_filled());
                let empty: Vec<&str> = empty.map(|collection| &*collection.prefix).collect();
                match &empty[..] {
                    [] => Ok(()),
                    kinds => Err(format!("not filled: {}", kinds.join(", "))),
                }
            }
            // The server opens only after these were made.
            SystemNamespaces | Bootstrap | BootstrapRoles => Ok(()),
            Shutdown if server.stop.is_cancelled() => Err("process is shutting down".to_owned()),
            Shutdown => Ok(()),
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// Answers for an endpoint, as a whole or for one check.
pub async fn answer(call: &Call, endpoint: &str, check: &[&str]) -> Result<Answer, ApiError> {
    let server = &*call.server;
    let parts = match (endpoint, server.parts.get()) {
        ("healthz", Some(parts)) => parts(),
        _ => Vec::new(),
    };
    let mut checks = (CHECKS.iter()).filter(|(.., endpoints)| endpoints.contains(&endpoint));
    if !check.is_empty() {
        let asked = check.join("/");
        if let Some((_, found)) = parts.into_iter().find(|(name, _)| *name == asked) {
            // What a panic said is for the log alone.
            return Ok(one(found.map_err(|_| "it has broken down".to_owned())));
        }
        let (_, check, _) = checks
            .find(|(name, ..)| *name == asked)
            .ok_or_else(ApiError::no_such_path)?;
        return Ok(one(check.look(server).await));
    }
    let mut excluded: Vec<&str> = call.query.all("exclude").collect();
    let (mut lines, mut failed) = (String::new(), Vec::new());
    for (name, check, _) in checks {
        if excluded.contains(name) {
            excluded.retain(|excluded| excluded != name);
            lines.push_str(&format!("[+]{name} excluded: ok\n"));
            continue;
        }
        tell(name, check.look(server).await, &mut lines, &mut failed);
    }
    for (name, found) in parts {
        if excluded.contains(&&*name) {
            excluded.retain(|excluded| *excluded != name);
            lines.push_str(&format!("[+]{name} excluded: ok\n"));
        } else {
            tell(&name, found, &mut lines, &mut failed);
        }
    }
    if !excluded.is_empty() {
        excluded.sort_unstable();
        excluded.dedup();
        let names: Vec<String> = excluded.iter().map(|name| format!("{name:?}")).collect();
        lines.push_str(&format!(
            "warn: some health checks cannot be excluded: no matches for {}\n",
            names.join(",")
        ));
    }
    if !failed.is_empty() {
        tracing::warn!(endpoint, failed = failed.join("; "), "not healthy");
        lines.push_str(&format!("{endpoint} check failed\n"));
        return Ok(text(StatusCode::INTERNAL_SERVER_ERROR, lines));
    }
    if call.query.all("verbose").next().is_none() {
        return Ok(text(StatusCode::OK, "ok".to_owned()));
    }
    lines.push_str(&format!("{endpoint} check passed\n"));
    Ok(text(StatusCode::OK, lines))
}

/// A line about a check, and why it fails.
fn tell(name: &str, found: Result<(), String>, lines: &mut String, failed: &mut Vec<String>) {
    match found {
        Ok(()) => lines.push_str(&format!("[+]{name} ok\n")),
        Err(why) => {
            lines.push_str(&format!("[-]{name} failed: reason withheld\n"));
            failed.push(format!("{name}: {why}"));
        }
    }
}

/// The answer about one check.
fn one(found: Result<(), String>) -> Answer {
    match found {
        Ok(()) => text(StatusCode::OK, "ok".to_owned()),
        Err(why) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("internal server error: {why}\n"),
        ),
    }
}

/// The paths of all checks, for the index of paths.
pub fn paths() -> impl Iterator<Item = String> {
    CHECKS.iter().flat_map(|(name, _, endpoints)| {
        let endpoints = endpoints.iter();
        endpoints.map(move |endpoint| format!("/{endpoint}/{name}"))
    })
}

fn text(code: StatusCode, text: String) -> Answer {
    let mut answer = respond::text(code, text);
    answer.headers_mut().insert(
        HeaderName::from_static("x-content-type-options"),
        HeaderValue::from_static("nosniff"),
    );
    answer
}
