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
//! The middle three are upgraded to a WebSocket (`v5.channel.k8s.io`, `v4.channel.k8s.io`; for ports
//! `SPDY/3.1+portforward.k8s.io`) or to SPDY/3.1. The API server passes the client's request headers on and then
//! copies bytes.

mod auth;
mod channels;
mod forward;
mod logs;
mod monitor;
mod query;
mod session;
mod spdy;
mod spdy_session;
mod websocket;

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use knarr_engine::types::{ContainerId, ContainerState, ContainerStatus};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::ctx::Ctx;
use crate::manager::Pods;
use crate::runtime::chain;
use crate::sandbox::label;

pub(crate) use auth::TlsError;

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) ctx: Arc<Ctx>,
    pub(crate) pods: Pods,
    auth: Arc<auth::Authority>,
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
    };
    let router = Router::new()
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
        .route("/portForward/{namespace}/{pod}", any(forward::handle))
        .layer(middleware::from_fn_with_state(server.clone(), auth::check))
        .with_state(server);
    Ok(Bound {
        listener,
        acceptor: TlsAcceptor::from(tls),
        router,
    })
}

async fn exec_with_uid(
    state: State<Server>,
    Path((namespace, pod, _uid, container)): Path<(String, String, String, String)>,
    request: Request,
) -> Response {
    session::exec(state, Path((namespace, pod, container)), request).await
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
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (acceptor, router) = (self.acceptor.clone(), self.router.clone());
            let connection = async move {
                let stream = match acceptor.accept(stream).await {
                    Ok(stream) => stream,
                    Err(error) => {
                        tracing::debug!(%error, "TLS handshake");
                        return;
                    }
                };
                let peer = auth::peer(stream.get_ref().1);
                let service = router.layer(axum::Extension(peer));
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let served = builder
                    .serve_connection_with_upgrades(
                        TokioIo::new(stream),
                        TowerToHyperService::new(service),
                    )
                    .await;
                if let Err(error) = served {
                    tracing::debug!(error = %error, "connection");
                }
            };
            tokio::spawn(stop.clone().run_until_cancelled_owned(connection));
        }
    }
}

impl Server {
    /// The containers of one name in one pod, the newest first.
    pub(super) async fn containers(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Result<Vec<ContainerStatus>, Refusal> {
        let Some(object) = self.pods.find(namespace, pod) else {
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

    /// The running container of one name in one pod.
    pub(super) async fn running(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Result<ContainerId, Refusal> {
        let found = self.containers(namespace, pod, container).await?;
        match found
            .into_iter()
            .find(|c| c.state == ContainerState::Running)
        {
            Some(status) => Ok(status.id),
            None => Err(Refusal(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("unable to upgrade connection: container not found (\"{container}\")"),
            )),
        }
    }
}
