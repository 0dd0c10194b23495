//! How many requests are carried out at once (apiserver, `server/filters/maxinflight.go`).
//!
//! A flood of one client's requests must not take the memory and the time of all: what is over the limit is sent away at once, to
//! come back a second later, as every client-go does by itself. Requests that wait for something to happen (watches, logs that are
//! followed, sessions, proxies) have no seat; nor have administrators, who must get in when something floods.

use std::sync::Arc;

use http::{HeaderValue, Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::path::Route;
use super::query::Query;
use super::respond::{self, Answer};
use crate::auth::UserInfo;
use crate::auth::authorize::MASTERS;

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    request_kind: &'static str,
}

const READING: Kind = Kind {
    request_kind: "readOnly",
};
const CHANGING: Kind = Kind {
    request_kind: "mutating",
};

/// The seats of one kind of requests.
struct Row {
    kind: Kind,
    free: Arc<Semaphore>,
}

impl Row {
    /// Zero is no limit, as with kube-apiserver.
    fn new(kind: Kind, count: usize) -> Self {
        let count = match count {
            0 => Semaphore::MAX_PERMITS,
            count => count.min(Semaphore::MAX_PERMITS),
        };
        let free = Arc::new(Semaphore::new(count));
        Self { kind, free }
    }
}

/// All seats.
pub struct Seats {
    reading: Row,
    changing: Row,
    taken: Family<Kind, Gauge>,
    dropped: Family<Kind, Counter>,
}

/// A seat, as long as it is held.
pub struct Seat {
    taken: Gauge,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.taken.dec();
    }
}

impl Seats {
    /// So many for what reads, and for what changes something; zero for any number.
    pub fn new(reading: usize, changing: usize, metrics: &mut Registry) -> Self {
        let (taken, dropped) = (Family::default(), Family::default());
        metrics.register(
            "apiserver_current_inflight_requests",
            "Requests that are being carried out, by kind",
            Family::clone(&taken),
        );
        metrics.register(
            "apiserver_dropped_requests",
            "Requests that were sent away because too many were being carried out, by kind",
            Family::clone(&dropped),
        );
        Self {
            reading: Row::new(READING, reading),
            changing: Row::new(CHANGING, changing),
            taken,
            dropped,
        }
    }

    /// A seat for a request, if it needs one.
    ///
    /// # Errors
    ///
    /// 429 when there is none.
    pub fn take(
        &self,
        user: &UserInfo,
        method: &Method,
        route: &Route,
        query: &Query,
    ) -> Result<Option<Seat>, TooMany> {
        let waits = matches!(route, Route::Resource(path) if path.waits(method, query));
        if waits || user.is_in(MASTERS) {
            return Ok(None);
        }
        let row = match *method {
            Method::GET | Method::HEAD | Method::OPTIONS => &self.reading,
            _ => &self.changing,
        };
        match row.free.clone().try_acquire_owned() {
            Ok(permit) => {
                let taken = self.taken.get_or_create(&row.kind).clone();
                taken.inc();
                Ok(Some(Seat {
                    taken,
                    _permit: permit,
                }))
            }
            Err(_) => {
                self.dropped.get_or_create(&row.kind).inc();
                Err(TooMany)
            }
        }
    }
}

/// There is no seat.
#[derive(Debug)]
pub struct TooMany;

impl TooMany {
    /// 429 in plain text, as kube-apiserver's own.
    pub fn answer(&self) -> Answer {
        let words = "Too many requests, please try again later.\n";
        let mut answer = respond::text(StatusCode::TOO_MANY_REQUESTS, words);
        let headers = answer.headers_mut();
        headers.insert("retry-after", HeaderValue::from_static("1"));
        headers.insert(
            "x-content-type-options",
            HeaderValue::from_static("nosniff"),
        );
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::path;

    #[test]
    fn reads_and_writes_sit_apart_and_who_waits_or_administrates_stands() {
        let seats = Seats::new(1, 1, &mut Registry::default());
        let user = UserInfo::new("jane", []);
        let admin = UserInfo::new("admin", [MASTERS.to_owned()]);
        let take = |user: &UserInfo, method: Method, uri: &str| {
            let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
            seats.take(user, &method, &path::parse(path), &Query::parse(query))
        };
        let pods = "/api/v1/namespaces/a/pods";
        let held = take(&user, Method::GET, pods);
        assert!(held.as_ref().is_ok_and(Option::is_some));
        let refused = take(&user, Method::GET, "/version")
            .err()
            .expect("refused")
            .answer();
        assert_eq!(refused.status(), 429);
        assert_eq!(refused.headers()["retry-after"], "1");
        let write = take(&user, Method::POST, pods);
        assert!(write.as_ref().is_ok_and(Option::is_some), "another row");
        assert!(take(&user, Method::PUT, pods).is_err());
        for uri in [
            "/api/v1/pods?watch=true",
            "/api/v1/watch/pods",
            "/api/v1/namespaces/a/pods/p/log?follow=true",
            "/api/v1/namespaces/a/pods/p/exec",
            "/api/v1/namespaces/a/services/s/proxy/x",
        ] {
            assert!(
                take(&user, Method::GET, uri).is_ok_and(|seat| seat.is_none()),
                "{uri}"
            );
        }
        assert!(take(&admin, Method::GET, pods).is_ok_and(|seat| seat.is_none()));
        drop((held, write));
        assert!(take(&user, Method::GET, pods).is_ok());
        let unbounded = Seats::new(0, 0, &mut Registry::default());
        let route = path::parse(pods);
        let all: Vec<_> = (0..1000)
            .map(|_| unbounded.take(&user, &Method::GET, &route, &Query::default()))
            .collect();
        assert!(all.iter().all(Result::is_ok));
    }
}
