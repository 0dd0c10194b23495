//! `/exec` and `/attach`.

use std::time::Duration;

use async_trait::async_trait;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use knarr_engine::types::{ContainerState, ContainerStatus, TerminalSize};
use tokio_util::io::StreamReader;

use super::channels::{self, Kind, Mode};
use super::query::Query;
use super::upgrade::{self, Upgrade};
use super::{Refusal, Server, quirks, spdy_session, websocket};
use crate::logs::{self, line};
use crate::runtime::{Reader, RuntimeError, Session, SessionControl, StreamRequest, chain};

pub(super) async fn exec(
    State(server): State<Server>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    request: Request,
) -> Response {
    handle(server, [&namespace, &pod, &container], request, Mode::Exec).await
}

pub(super) async fn attach(
    State(server): State<Server>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    request: Request,
) -> Response {
    handle(
        server,
        [&namespace, &pod, &container],
        request,
        Mode::Attach,
    )
    .await
}

async fn handle(server: Server, place: [&str; 3], request: Request, mode: Mode) -> Response {
    let query = Query::parse(request.uri().query());
    let tty = query.on(&["tty"]);
    let wanted = StreamRequest {
        command: query.all("command"),
        tty,
        stdin: query.on(&["stdin", "input"]),
        stdout: query.on(&["stdout", "output"]),
        // A terminal has one output.
        stderr: query.on(&["stderr", "error"]) && !tty,
    };
    if mode == Mode::Exec && wanted.command.is_empty() {
        return Refusal(
            StatusCode::BAD_REQUEST,
            "you must specify at least 1 command for the container".to_owned(),
        )
        .into_response();
    }
    if !(wanted.stdin || wanted.stdout || wanted.stderr) {
        let message = "you must specify at least 1 of stdin, stdout, stderr".to_owned();
        return Refusal(StatusCode::BAD_REQUEST, message).into_response();
    }
    let [namespace, pod, container] = place;
    let replayed = mode == Mode::Attach && quirks::comes_late(request.headers());
    let target = match target(&server, [namespace, pod, container], replayed).await {
        Ok(target) => target,
        Err(refusal) => return refusal.into_response(),
    };
    let config = &target.status().config;
    let kind = Kind {
        mode,
        command: wanted.command.clone(),
        idle: channels::IDLE,
        ends_with_input: mode == Mode::Attach && wanted.stdin && (!config.stdin_once || config.tty),
    };
    let open = open(server, target, wanted.clone(), mode, replayed);
    let (mut parts, body) = request.into_parts();
    match upgrade::of(&parts.headers) {
        Some(Upgrade::Spdy) => {
            spdy_session::upgrade(Request::from_parts(parts, body), wanted, kind, open)
        }
        Some(Upgrade::WebSocket) => {
            match upgrade::websocket(&mut parts, &websocket::PROTOCOLS).await {
                Ok((socket, protocol)) => {
                    let wants_output = (wanted.stdout, wanted.stderr);
                    socket.on_upgrade(move |socket| {
                        websocket::carry(socket, protocol, wants_output, kind, open)
                    })
                }
                Err(refusal) => refusal.into_response(),
            }
        }
        None => upgrade::required().into_response(),
    }
}

/// What a session is to be with.
enum Target {
    Running(ContainerStatus),
    /// Its last output, for a client that comes a moment late.
    Ended(ContainerStatus),
}

impl Target {
    fn status(&self) -> &ContainerStatus {
        match self {
            Self::Running(status) | Self::Ended(status) => status,
        }
    }
}

/// How long after its end a container can still be attached to.
const LATE: Duration = Duration::from_secs(10);

/// The container of a session.
///
/// One that has ended cannot be attached to. But `kubectl run -i` attaches when it has seen its pod run, and a short command has
/// ended by then: for a moment, the output of a container that will not be started again is all there, in its log, to be
/// `replayed`.
async fn target(server: &Server, place: [&str; 3], replayed: bool) -> Result<Target, Refusal> {
    let [namespace, pod, container] = place;
    let found = server.containers(namespace, pod, container).await?;
    let newest = found.first().filter(|status| {
        let object = server.pod(namespace, pod);
        let policy = object
            .as_ref()
            .and_then(|pod| pod.spec.as_ref()?.restart_policy.as_deref());
        let over = policy == Some("Never") || policy == Some("OnFailure") && status.exit_code == 0;
        let since = status.finished_at.and_then(|at| at.elapsed().ok());
        over && status.state == ContainerState::Exited && since.is_some_and(|since| since < LATE)
    });
    let newest = newest.cloned();
    let running = found
        .into_iter()
        .find(|status| status.state == ContainerState::Running);
    match (running, newest) {
        (Some(status), _) => Ok(Target::Running(status)),
        (None, Some(status)) if replayed => Ok(Target::Ended(status)),
        // The client sets "unable to upgrade connection" before it.
        _ => Err(Refusal(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("container not found (\"{container}\")"),
        )),
    }
}

async fn open(
    server: Server,
    target: Target,
    wanted: StreamRequest,
    mode: Mode,
    replayed: bool,
) -> Result<Session, String> {
    let runtime = &server.ctx.runtime;
    let status = match target {
        Target::Running(status) => status,
        Target::Ended(status) => return Ok(replay(&server, status, &wanted)),
    };
    let session = match mode {
        Mode::Exec => runtime.exec(&status.id, wanted).await,
        Mode::Attach => {
            let attached = runtime.attach(&status.id, wanted.clone()).await;
            if replayed
                && attached.is_err()
                && let Ok(now) = runtime.container_status(&status.id).await
                && now.state == ContainerState::Exited
            {
                // It has ended since it was looked at; nothing of its output was sent.
                return Ok(replay(&server, now, &wanted));
            }
            attached
        }
    };
    session.map_err(|e| chain(&e))
}

/// A session with a container that has ended: what it wrote.
fn replay(server: &Server, status: ContainerStatus, wanted: &StreamRequest) -> Session {
    let stream = |wanted: bool, only| {
        wanted.then(|| {
            let source = logs::Source {
                runtime: server.ctx.runtime.clone(),
                id: status.id.clone(),
                path: status.log_path.clone(),
            };
            let options = logs::Options {
                only: Some(only),
                ..logs::Options::default()
            };
            Box::new(StreamReader::new(logs::stream(source, options))) as Reader
        })
    };
    Session {
        stdin: None,
        stdout: stream(wanted.stdout, line::Stream::Stdout),
        stderr: stream(wanted.stderr, line::Stream::Stderr),
        control: Box::new(Ended(status.exit_code)),
    }
}

/// The rest of a session with a container that has ended.
struct Ended(i32);

#[async_trait]
impl SessionControl for Ended {
    async fn resize(&mut self, _size: TerminalSize) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn wait(&mut self) -> Result<i32, RuntimeError> {
        Ok(self.0)
    }
}
