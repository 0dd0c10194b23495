//! WATCH: one watcher's view of a collection's changes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use knarr_store::Revision;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Registry;
use super::collection::{Change, Collection, Cursor};
use super::entry::{ChangeType, Entry};
use super::list::{self, parse_revision};
use super::selector::Selector;
use crate::resource::Resource;
use crate::status::{ApiError, FieldError};

/// How often a watcher that allows bookmarks gets one while nothing else happens.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Changes taken from the window in one go.
const BATCH: usize = 512;
/// Frames are put together up to about this size, so that one write carries many.
const CHUNK: usize = 64 << 10;

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the changes after a revision. One from the future is waited for: what comes before it is not sent.
    After(Revision),
    /// With the present objects, as changes.
    Present {
        /// They must be of this revision or a later one.
        not_older_than: Revision,
        /// Whether a bookmark marks their end.
        bookmark: bool,
    },
}

/// The parameters of a watch.
#[derive(Clone, Debug)]
pub struct WatchRequest {
    /// The namespace; empty for all.
    pub namespace: String,
    /// The name, where a single object is watched.
    pub name: String,
    /// Which objects.
    pub selector: Selector,
    /// Where it begins.
    pub start: Start,
    /// Whether bookmarks are wanted.
    pub bookmarks: bool,
    /// When the watch ends.
    pub timeout: Duration,
}

impl WatchRequest {
    /// The start of a watch from its query parameters.
    ///
    /// # Errors
    ///
    /// 422 for combinations that make no sense, 400 for a revision that is no number.
    pub fn start(
        version: &str,
        matching: &str,
        send_initial_events: Option<bool>,
        bookmarks: bool,
    ) -> Result<Start, ApiError> {
        let refused = |error: FieldError| {
            Err(ApiError::invalid(
                "meta.k8s.io",
                "ListOptions",
                "",
                &[error],
            ))
        };
        match send_initial_events {
            Some(_) if matching != "NotOlderThan" => {
                return refused(FieldError::forbidden(
                    "resourceVersionMatch",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ));
            }
            Some(true) if !bookmarks => {
                return refused(FieldError::forbidden(
                    "sendInitialEvents",
                    "sendInitialEvents is forbidden for watch unless allowWatchBookmarks is set",
                ));
            }
            None if !matching.is_empty() => {
                return refused(FieldError::forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                ));
            }
            _ => {}
        }
        let revision = if version.is_empty() {
            0
        } else {
            parse_revision(version)?
        };
        let asked = send_initial_events == Some(true);
        Ok(if asked || revision == 0 {
            Start::Present {
                not_older_than: revision,
                bookmark: asked,
            }
        } else {
            Start::After(revision)
        })
    }
}

/// How a watcher wants its frames: the shared bytes as they are, or made anew for it.
pub trait Frames: Send {
    /// The frame of a change, or `None` for the shared JSON frame.
    fn convert(&mut self, change: ChangeType, object: &Value) -> Option<Bytes>;
    /// Whether [`Frames::convert`] makes frames of its own.
    fn converts(&self) -> bool;
    /// The frame of a bookmark or an error.
    fn other(&mut self, kind: &str, object: &Value) -> Bytes;
}

/// One watcher.
pub struct Watcher {
    registry: Arc<Registry>,
    resource: Arc<Resource>,
    collection: Arc<Collection>,
    request: WatchRequest,
    frames: Box<dyn Frames>,
    initial: VecDeque<Arc<Entry>>,
    /// The revision of the bookmark that ends the initial events, until it is sent.
    initial_end: Option<Revision>,
    cursor: Cursor,
    /// Everything up to here was sent.
    passed: Revision,
    deadline: Instant,
    bookmark_at: Instant,
    stop: CancellationToken,
    ended: bool,
}

impl Watcher {
    /// Starts a watch.
    ///
    /// # Errors
    ///
    /// 410 if the changes since the revision asked for are gone.
    pub fn new(
        registry: Arc<Registry>,
        resource: Arc<Resource>,
        collection: Arc<Collection>,
        request: WatchRequest,
        frames: Box<dyn Frames>,
        stop: CancellationToken,
    ) -> Result<Self, ApiError> {
        let now = Instant::now();
        let seen = registry.feed.revision();
        let namespace = match &*request.namespace {
            "" => request.selector.namespace().unwrap_or_default(),
            namespace => namespace,
        };
        let name = Some(&*request.name).filter(|name| !name.is_empty());
        let name = name.or(request.selector.name());
        let view = list::view(&resource, &collection, namespace, name, &request.selector);
        let (initial, cursor, passed) = match request.start {
            Start::After(revision) => {
                let cursor = collection.follow(&view, revision).map_err(|old| {
                    ApiError::expired(format!(
                        "too old resource version: {revision} ({})",
                        old.floor
                    ))
                })?;
                (VecDeque::new(), cursor, revision)
            }
            Start::Present { .. } => {
                let scope = if namespace.is_empty() {
                    String::new()
                } else {
                    format!("{namespace}/")
                };
                let (snapshot, cursor) = collection.snapshot_and_follow(&view, &scope);
                (snapshot.entries.into(), cursor, seen.max(snapshot.newest))
            }
        };
        let wants_end = matches!(request.start, Start::Present { bookmark: true, .. });
        let initial_end = wants_end.then_some(passed);
        Ok(Self {
            deadline: now + request.timeout,
            bookmark_at: now + BOOKMARK_EVERY,
            registry,
            resource,
            collection,
            request,
            frames,
            initial,
            initial_end,
            cursor,
            passed,
            stop,
            ended: false,
        })
    }

    /// The next bytes for the client; `None` at the end. Dropping the wait loses nothing.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.ended {
                return None;
            }
            if let Some(chunk) = self.take_initial() {
                return Some(chunk);
            }
            // Read before the window: what was passed then is surely in the changes taken now.
            let revision = self.registry.feed.revision();
            match self.collection.read(&mut self.cursor, BATCH) {
                Err(old) => {
                    self.ended = true;
                    let error = ApiError::expired(format!(
                        "too old resource version: {} ({})",
                        self.passed, old.floor
                    ));
                    return Some(self.frames.other("ERROR", &error.to_status()));
                }
                Ok(changes) if !changes.is_empty() => {
                    let before = self.passed;
                    self.passed = changes
                        .last()
                        .map_or(self.passed, |change| self.passed.max(change.revision));
                    // A client that has seen a revision from the future has seen what comes before it, too.
                    let after = changes.partition_point(|change| change.revision <= before);
                    if let Some(chunk) = self.chunk(&changes[after..]) {
                        return Some(chunk);
                    }
                }
                Ok(_) => {
                    self.passed = self.passed.max(revision);
                    // Whichever branch wins, the others hold nothing: times are kept, changes wait in the window.
                    tokio::select! {
                        () = self.cursor.changed() => {}
                        () = tokio::time::sleep_until(self.bookmark_at), if self.request.bookmarks => {
                            self.bookmark_at = Instant::now() + BOOKMARK_EVERY;
                            if self.passed > self.registry.feed.revision() {
                                continue;
                            }
                            // Nothing was in the window when `passed` was read, so nothing up to it is missing.
                            return Some(self.bookmark(self.passed, false));
                        }
                        () = tokio::time::sleep_until(self.deadline) => self.ended = true,
                        () = self.stop.cancelled() => self.ended = true,
                    }
                }
            }
        }
    }

    fn take_initial(&mut self) -> Option<Bytes> {
        let mut out = BytesMut::new();
        while out.len() < CHUNK {
            let Some(entry) = self.initial.pop_front() else {
                break;
            };
            if self.sees(&entry) {
                out.extend_from_slice(&self.frame(ChangeType::Added, &entry, entry.revision));
            }
        }
        if self.initial.is_empty()
            && let Some(revision) = self.initial_end.take()
        {
            out.extend_from_slice(&self.bookmark(revision, true));
        }
        (!out.is_empty()).then(|| out.freeze())
    }

    fn chunk(&mut self, changes: &[Arc<Change>]) -> Option<Bytes> {
        let mut frames: Vec<Bytes> = changes
            .iter()
            .filter_map(|change| self.change(change))
            .collect();
        match frames.len() {
            0 => None,
            1 => frames.pop(),
            _ => {
                let mut out = BytesMut::with_capacity(frames.iter().map(Bytes::len).sum());
                frames.iter().for_each(|frame| out.extend_from_slice(frame));
                Some(out.freeze())
            }
        }
    }

    /// What a change means to this watcher: what it sees for the first time is new, what it sees no more is gone.
    fn change(&mut self, change: &Change) -> Option<Bytes> {
        let now = change.current.as_ref().filter(|entry| self.sees(entry));
        let before = change.previous.as_ref().filter(|entry| self.sees(entry));
        let (kind, entry) = match (before, now) {
            (None, None) => return None,
            (None, Some(entry)) => (ChangeType::Added, entry),
            (Some(_), Some(entry)) => (ChangeType::Modified, entry),
            (Some(entry), None) => (ChangeType::Deleted, entry),
        };
        if kind == change.change_type()
            && !self.frames.converts()
            && self.resource.storage_version.is_none()
        {
            return Some(change.frame.clone());
        }
        let entry = entry.clone();
        Some(self.frame(kind, &entry, change.revision))
    }

    fn sees(&self, entry: &Entry) -> bool {
        let request = &self.request;
        (request.namespace.is_empty() || request.namespace == entry.namespace())
            && (request.name.is_empty() || request.name == entry.name())
            && (request.selector.is_empty() || {
                let converted = self
                    .resource
                    .storage_version
                    .as_ref()
                    .map(|_| &*self.resource);
                list::matches(&request.selector, entry, converted)
            })
    }

    fn frame(&mut self, change: ChangeType, entry: &Entry, revision: Revision) -> Bytes {
        if !self.frames.converts() && self.resource.storage_version.is_none() {
            return entry.frame_at(change, revision);
        }
        let mut object = entry.parse();
        object["metadata"]["resourceVersion"] = revision.to_string().into();
        if self.resource.storage_version.is_some() {
            self.resource.convert(&mut object, &self.resource.gvk);
        }
        self.frames.convert(change, &object).unwrap_or_else(|| {
            let mut frame = BytesMut::from(change.frame_start());
            frame.extend_from_slice(object.to_string().as_bytes());
            frame.extend_from_slice(b"}\n");
            frame.freeze()
        })
    }

    fn bookmark(&mut self, revision: Revision, initial_end: bool) -> Bytes {
        let mut object = json!({
            "kind": self.resource.gvk.kind,
            "apiVersion": self.resource.gvk.api_version(),
            "metadata": { "resourceVersion": revision.to_string() },
        });
        if initial_end {
            object["metadata"]["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        self.frames.other("BOOKMARK", &object)
    }
}
