//! The agent's HTTPS server, which the API server calls for logs, exec, attach and port-forward, and monitoring for
//! metrics.
//!
//! | path | what |
//! |---|---|
//! | `GET /containerLogs/<namespace>/<pod>/<container>` | the log; query as for `pods/log` |
//! | `/exec/<namespace>/<pod>/<container>` | runs a command; query as for `pods/exec` (or the kubelet's `input`, `output`, `error`) |
//! | `/attach/<namespace>/<pod>/<container>` | joins the container's own streams |
//! | `/portForward/<namespace>/<pod>` | ports of the pod |
//! | `GET /pods`, `/stats/summary`, `/metrics`, `/metrics/resource`, `/metrics/cadvisor`, `/metrics/probes`, `/healthz`, `/configz` | as in the kubelet |
//!
//! The middle three are upgraded to a WebSocket (`channel.k8s.io` in its versions, with or without base64; for ports also
//! `SPDY/3.1+portforward.k8s.io`) or to SPDY/3.1. The API server passes the client's request headers on and then
//! copies bytes.

mod auth;
mod channels;
mod connection;
mod forward;
mod logs;
mod monitor;
mod query;
mod quirks;
mod session;
mod spdy;
mod spdy_session;
#[cfg(test)]
mod tests;
mod upgrade;
mod websocket;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use k8s_openapi::api::core::v1::Pod;
use knarr_engine::types::ContainerStatus;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::ctx::Ctx;
use crate::manager::Pods;
use crate::panics;
use crate::runtime::chain;
use crate::sandbox::label;

pub(crate) use auth::TlsError;

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) ctx: Arc<Ctx>,
    pub(crate) pods: Pods,
    auth: Arc<auth::Authority>,
    /// The pod that the request names besides its name, if it does.
    uid: Option<String>,
}

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("listen on {address}")]
    Listen {
        address: std::net::SocketAddr,
        source: io::Error,
    },
    #[error("set up TLS")]
    Tls { source: TlsError },
}

/// A refusal, in the plain text that the kubelet answers with.
pub(super) struct Refusal(pub(super) StatusCode, pub(super) String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

/// A server that listens and is ready to run.
pub(crate) struct Bound {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    router: Router,
}

/// Listens.
pub(crate) async fn bind(ctx: Arc<Ctx>, pods: Pods) -> Result<Bound, ServeError> {
    let address = ctx.config.listen;
    let tls = auth::tls(&ctx.config).map_err(|source| ServeError::Tls { source })?;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Listen { address, source })?;
    let server = Server {
        auth: Arc::new(auth::Authority::new(&ctx)),
        ctx,
        pods,
        uid: None,
    };
    let router = routes()
        .layer(middleware::from_fn_with_state(server.clone(), auth::check))
        .layer(middleware::from_fn(answer_panics))
        .with_state(server);
    Ok(Bound {
        listener,
        acceptor: TlsAcceptor::from(tls),
        router,
    })
}

/// Who answers what; who may ask is checked before.
fn routes() -> Router<Server> {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/healthz/{check}", get(|| async { "ok" }))
        .route("/pods", get(monitor::pods))
        .route("/runningpods/", get(monitor::pods))
        .route("/stats/summary", get(monitor::summary))
        .route("/metrics", get(monitor::metrics))
        .route("/metrics/resource", get(monitor::resource_metrics))
        .route("/metrics/cadvisor", get(monitor::cadvisor))
        .route("/metrics/probes", get(|| async { "" }))
        .route("/configz", get(monitor::configz))
        .route(
            "/containerLogs/{namespace}/{pod}/{container}",
            get(logs::get),
        )
        .route("/exec/{namespace}/{pod}/{container}", any(session::exec))
        .route(
            "/exec/{namespace}/{pod}/{uid}/{container}",
            any(exec_with_uid),
        )
        .route(
            "/attach/{namespace}/{pod}/{container}",
            any(session::attach),
        )
        .route(
            "/attach/{namespace}/{pod}/{uid}/{container}",
            any(attach_with_uid),
        )
        .route("/portForward/{namespace}/{pod}", any(forward::handle))
        .route(
            "/portForward/{namespace}/{pod}/{uid}",
            any(forward_with_uid),
        )
}

/// A request whose handler panics is answered as one that failed, and no other one fails with it.
async fn answer_panics(request: Request, next: Next) -> Response {
    match panics::caught(next.run(request)).await {
        Ok(response) => response,
        Err(message) => {
            tracing::error!(message, "a request to the node's server panicked");
            Refusal(StatusCode::INTERNAL_SERVER_ERROR, message).into_response()
        }
    }
}

async fn exec_with_uid(
    State(server): State<Server>,
    Path((namespace, pod, uid, container)): Path<(String, String, String, String)>,
    request: Request,
) -> Response {
    let place = Path((namespace, pod, container));
    session::exec(State(server.of(uid)), place, request).await
}

async fn attach_with_uid(
    State(server): State<Server>,
    Path((namespace, pod, uid, container)): Path<(String, String, String, String)>,
    request: Request,
) -> Response {
    let place = Path((namespace, pod, container));
    session::attach(State(server.of(uid)), place, request).await
}

async fn forward_with_uid(
    State(server): State<Server>,
    Path((namespace, pod, uid)): Path<(String, String, String)>,
    request: Request,
) -> Response {
    forward::handle(State(server.of(uid)), Path((namespace, pod)), request).await
}

impl Bound {
    /// Serves until stopped.
    pub(crate) async fn run(self, stop: CancellationToken) {
        loop {
            // An accepted connection is never dropped: `accept` may be cancelled.
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely; trying again at once would only spin.
                    tracing::warn!(%error, "accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (acceptor, router) = (self.acceptor.clone(), self.router.clone());
            let connection = async move {
                if let Err(error) = connection::serve(stream, acceptor, router).await {
                    tracing::debug!(error = chain(&error), "connection");
                }
            };
            tokio::spawn(stop.clone().run_until_cancelled_owned(connection));
        }
    }
}

impl Server {
    /// The server for a request to the pod of this UID.
    fn of(self, uid: String) -> Self {
        Self {
            uid: Some(uid),
            ..self
        }
    }

    /// The pod that a request names.
    pub(super) fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods.find(namespace, name, self.uid.as_deref())
    }

    /// The containers of one name in one pod, the newest first.
    pub(super) async fn containers(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Result<Vec<ContainerStatus>, Refusal> {
        let Some(object) = self.pod(namespace, pod) else {
            return Err(Refusal(
                StatusCode::NOT_FOUND,
                format!("pod \"{pod}\" does not exist"),
            ));
        };
        let uid = object.metadata.uid.as_deref().unwrap_or_default();
        let all = self
            .ctx
            .runtime
            .list_containers()
            .await
            .map_err(|e| Refusal(StatusCode::INTERNAL_SERVER_ERROR, chain(&e)))?;
        let mut found: Vec<ContainerStatus> = all
            .into_iter()
            .filter(|c| c.config.name == container)
            .filter(|c| {
                c.config
                    .labels
                    .get(label::POD_UID)
                    .is_some_and(|u| u == uid)
            })
            .collect();
        found.sort_by_key(|c| std::cmp::Reverse((c.config.attempt, c.created_at)));
        Ok(found)
    }
}
