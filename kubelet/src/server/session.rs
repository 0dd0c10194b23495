//! `/exec` and `/attach`.

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use knarr_engine::types::ContainerId;

use super::query::Query;
use super::{Refusal, Server, spdy_session, websocket};
use crate::runtime::{Session, StreamRequest, chain};

/// Which kind of session.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Exec,
    Attach,
}

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
    let id = match server.running(namespace, pod, container).await {
        Ok(id) => id,
        Err(refusal) => return refusal.into_response(),
    };
    let open = open(server, id, wanted.clone(), mode);
    let (mut parts, body) = request.into_parts();
    let upgrade = parts
        .headers
        .get(header::UPGRADE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    if upgrade.eq_ignore_ascii_case("SPDY/3.1") {
        return spdy_session::upgrade(Request::from_parts(parts, body), wanted, open);
    }
    match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
        Ok(upgrade) => upgrade
            .protocols(websocket::PROTOCOLS)
            .on_upgrade(move |socket| websocket::carry(socket, open)),
        Err(rejection) => rejection.into_response(),
    }
}

async fn open(
    server: Server,
    id: ContainerId,
    wanted: StreamRequest,
    mode: Mode,
) -> Result<Session, String> {
    let runtime = &server.ctx.runtime;
    let session = match mode {
        Mode::Exec => runtime.exec(&id, wanted).await,
        Mode::Attach => runtime.attach(&id, wanted).await,
    };
    session.map_err(|e| chain(&e))
}
