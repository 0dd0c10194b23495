//! `GET /containerLogs/<namespace>/<pod>/<container>`.

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ContainerStatus;
use knarr_engine::types::ContainerState;

use super::query::Query;
use super::{Refusal, Server};
use crate::container_status::container_id;
use crate::logs::{self, Options, Source, line::Stream};

pub(super) async fn get(
    State(server): State<Server>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let query = Query::parse(query.as_deref());
    let options = options(&query)?;
    let bad = |message: String| Refusal(StatusCode::BAD_REQUEST, message);
    let found = server.containers(&namespace, &pod, &container).await?;
    let previous = query.on(&["previous"]);
    let status = if previous {
        // What the status calls the last state; without a status, the one before the newest.
        let last = last_state(&server, &namespace, &pod, &container);
        let by_status = last.and_then(|id| found.iter().find(|c| container_id(c) == id));
        let ended = by_status.or_else(|| {
            found
                .iter()
                .skip(1)
                .find(|c| c.state == ContainerState::Exited)
        });
        ended.ok_or_else(|| {
            bad(format!(
                "previous terminated container \"{container}\" in pod \"{pod}\" not found"
            ))
        })?
    } else {
        let started = found.iter().find(|c| c.state != ContainerState::Created);
        started.ok_or_else(|| {
            let reason = waiting_reason(&server, &namespace, &pod, &container);
            bad(format!(
                "container \"{container}\" in pod \"{pod}\" is waiting to start: {reason}"
            ))
        })?
    };
    if !status.log_path.exists() {
        return Err(Refusal(
            StatusCode::NOT_FOUND,
            format!("log of container \"{container}\" in pod \"{pod}\" is gone"),
        ));
    }
    let source = Source {
        runtime: server.ctx.runtime.clone(),
        id: status.id.clone(),
        path: status.log_path.clone(),
    };
    let body = Body::from_stream(logs::stream(source, options));
    Ok(([(header::CONTENT_TYPE, "text/plain")], body).into_response())
}

fn options(query: &Query) -> Result<Options, Refusal> {
    let invalid = |name: &str, value: &str| {
        Refusal(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("{name}: Invalid value: \"{value}\""),
        )
    };
    let number = |name: &str| match query.get(name) {
        None => Ok(None),
        Some(value) => value
            .parse::<u64>()
            .map(Some)
            .map_err(|_| invalid(name, value)),
    };
    // A negative tail is "all", as kubectl sends it.
    let tail = query.get("tailLines").filter(|v| !v.starts_with('-'));
    let tail = tail
        .map(|v| v.parse::<u64>().map_err(|_| invalid("tailLines", v)))
        .transpose()?;
    let mut since = number("sinceSeconds")?.map(logs::seconds_ago);
    if let Some(value) = query.get("sinceTime") {
        since = Some(
            value
                .parse::<Timestamp>()
                .map_err(|_| invalid("sinceTime", value))?,
        );
    }
    Ok(Options {
        follow: query.on(&["follow"]),
        tail,
        since,
        timestamps: query.on(&["timestamps"]),
        limit: number("limitBytes")?,
        only: match query.get("stream") {
            Some("Stdout") => Some(Stream::Stdout),
            Some("Stderr") => Some(Stream::Stderr),
            _ => None,
        },
    })
}

/// The status of one container, as the API has it.
fn container_status(
    server: &Server,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Option<ContainerStatus> {
    let object = server.pod(namespace, pod)?;
    let status = object.status.as_ref()?;
    let statuses = [
        &status.container_statuses,
        &status.init_container_statuses,
        &status.ephemeral_container_statuses,
    ];
    statuses
        .into_iter()
        .flatten()
        .flatten()
        .find(|s| s.name == container)
        .cloned()
}

/// The id of the container that ended last before the present state.
fn last_state(server: &Server, namespace: &str, pod: &str, container: &str) -> Option<String> {
    let status = container_status(server, namespace, pod, container)?;
    status.last_state?.terminated?.container_id
}

/// What the container's status says, for a container that has no log yet.
fn waiting_reason(server: &Server, namespace: &str, pod: &str, container: &str) -> String {
    let find = || {
        let waiting = container_status(server, namespace, pod, container)?
            .state?
            .waiting?;
        Some(match waiting.reason.as_deref()? {
            "ErrImagePull" => "image can't be pulled".to_owned(),
            "ImagePullBackOff" => "trying and failing to pull image".to_owned(),
            reason => reason.to_owned(),
        })
    };
    find().unwrap_or_else(|| "ContainerCreating".to_owned())
}
