//! LIST: which objects, of which revision, in which pages.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use knarr_store::Revision;
use serde_json::{Value, json};

use super::Registry;
use super::collection::{Collection, Frozen};
use super::entry::Entry;
use super::lanes::View;
use super::selector::Selector;
use crate::resource::{Resource, Scope};
use crate::status::{ApiError, FieldError};

/// How long a read waits for a revision that is not here yet.
const FUTURE_WAIT: Duration = Duration::from_secs(3);

/// Which revision a read wants (`resourceVersion` and `resourceVersionMatch`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The present.
    Newest,
    /// At least this one; 0 for any.
    NotOlderThan(Revision),
    /// This one.
    Exact(Revision),
}

/// The parameters of a list.
#[derive(Clone, Debug)]
pub struct ListRequest<'a> {
    /// The namespace; empty for all.
    pub namespace: &'a str,
    /// Which objects.
    pub selector: Selector,
    /// Which revision.
    pub at: At,
    /// At most so many objects; 0 for all.
    pub limit: usize,
    /// The token of the page before.
    pub continue_token: &'a str,
}

/// One page.
#[derive(Debug)]
pub struct Page {
    /// The objects.
    pub entries: Vec<Arc<Entry>>,
    /// The revision of the list.
    pub revision: Revision,
    /// The token of the next page; empty if this is the last.
    pub continue_token: String,
    /// How many objects the next pages have, where that is known.
    pub remaining: Option<usize>,
}

impl Page {
    /// The list's `metadata`.
    pub fn metadata(&self) -> Value {
        let mut metadata = json!({ "resourceVersion": self.revision.to_string() });
        if !self.continue_token.is_empty() {
            metadata["continue"] = (&*self.continue_token).into();
        }
        if let Some(remaining) = self.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        metadata
    }
}

impl At {
    /// From the query parameters of a list; `limited` is whether it is read in pages.
    ///
    /// # Errors
    ///
    /// 422 for combinations that make no sense, 400 for a revision that is no number.
    pub fn parse(
        version: &str,
        matching: &str,
        limited: bool,
        continues: bool,
    ) -> Result<Self, ApiError> {
        let invalid = |error: FieldError| {
            Err(ApiError::invalid(
                "meta.k8s.io",
                "ListOptions",
                "",
                &[error],
            ))
        };
        let forbidden = |detail| invalid(FieldError::forbidden("resourceVersionMatch", detail));
        if !matching.is_empty() {
            if continues {
                return forbidden("resourceVersionMatch is forbidden when continue is provided");
            }
            if version.is_empty() {
                return forbidden(
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                );
            }
            if !matches!(matching, "Exact" | "NotOlderThan") {
                return invalid(FieldError::not_supported(
                    "resourceVersionMatch",
                    &matching.into(),
                    &["Exact", "NotOlderThan", ""],
                ));
            }
            if matching == "Exact" && version == "0" {
                return forbidden(
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                );
            }
        }
        if version.is_empty() {
            return Ok(Self::Newest);
        }
        let revision = parse_revision(version)?;
        if continues && revision != 0 {
            return Err(ApiError::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        // With a limit and no word about it a revision means itself: the first page and the next ones show one state.
        let exact = matching == "Exact" || matching.is_empty() && limited && revision != 0;
        Ok(if exact {
            Self::Exact(revision)
        } else {
            Self::NotOlderThan(revision)
        })
    }
}

/// A resourceVersion of a query.
///
/// # Errors
///
/// 400 if it is no number.
pub fn parse_revision(version: &str) -> Result<Revision, ApiError> {
    version.parse().map_err(|_| {
        ApiError::bad_request(format!(
            "Invalid value: {version:?}: strconv.ParseUint: parsing {version:?}: invalid syntax"
        ))
    })
}

impl Registry {
    /// Waits for a revision that the client has seen elsewhere.
    ///
    /// # Errors
    ///
    /// 504 if it does not come.
    pub async fn wait_for(&self, revision: Revision) -> Result<(), ApiError> {
        if tokio::time::timeout(FUTURE_WAIT, self.feed.reached(revision))
            .await
            .is_ok()
        {
            return Ok(());
        }
        let message = format!(
            "Too large resource version: {revision}, current: {}",
            self.feed.revision()
        );
        Err(ApiError {
            details: json!({ "retryAfterSeconds": 1,
                "causes": [{ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" }] }),
            ..ApiError::new(504, "Timeout", format!("Timeout: {message}"))
        })
    }

    /// One page of a list.
    ///
    /// # Errors
    ///
    /// 400 for a bad token, 410 for a revision that is gone, 504 for one that does not come.
    pub async fn list(
        &self,
        resource: &Resource,
        collection: &Collection,
        request: &ListRequest<'_>,
    ) -> Result<Page, ApiError> {
        let at = if request.continue_token.is_empty() {
            request.at
        } else {
            At::Newest
        };
        if let At::NotOlderThan(revision) | At::Exact(revision) = at {
            self.wait_for(revision).await?;
        }
        let namespace = match request.namespace {
            "" => request.selector.namespace().unwrap_or_default(),
            namespace => namespace,
        };
        let scope = scope(resource, namespace, &request.selector);
        let view = view(
            resource,
            collection,
            namespace,
            request.selector.name(),
            &request.selector,
        );
        let from = match request.continue_token {
            "" => From::default(),
            token => parse_token(token, &scope)?,
        };
        if let Some(revision) = from.revision {
            // Of another server, which is ahead of this one.
            self.wait_for(revision).await?;
        }
        let (source, revision) = self.source(collection, &view, &scope, at, &from)?;
        let mut rest = source.range(&scope, &from.start);
        let converted = resource.storage_version.as_ref().map(|_| resource);
        let mut entries = Vec::new();
        let mut more = false;
        for entry in rest.by_ref() {
            if !matches(&request.selector, entry, converted) {
                continue;
            }
            if request.limit > 0 && entries.len() == request.limit {
                more = true;
                break;
            }
            entries.push(entry.clone());
        }
        let mut page = Page {
            entries,
            revision,
            continue_token: String::new(),
            remaining: None,
        };
        if more && let Some(last) = page.entries.last() {
            if request.selector.is_empty() {
                // Counted once for all pages, if at all.
                let left = match (from.left, &source) {
                    (Some(left), _) => left.saturating_sub(page.entries.len()),
                    (None, Source::All(all)) if scope.is_empty() && from.start.is_empty() => {
                        all.count() - page.entries.len()
                    }
                    _ => rest.count() + 1,
                };
                page.remaining = Some(left);
            }
            page.continue_token = token(revision, &last.key, &scope, page.remaining);
            // The first page says how long; the next ones are asked for meanwhile.
            if let (Source::All(all), None) = (&source, from.revision) {
                collection.keep(revision, all);
            }
        }
        Ok(page)
    }

    /// The state that a page is of, and its revision.
    fn source(
        &self,
        collection: &Collection,
        view: &View,
        scope: &str,
        at: At,
        from: &From,
    ) -> Result<(Source, Revision), ApiError> {
        let at = match (from.revision, at) {
            (Some(revision), _) => revision,
            (None, At::Exact(revision)) => revision,
            (None, At::Newest | At::NotOlderThan(_)) => {
                return Ok(self.present(collection, view, scope, &from.start));
            }
        };
        if let Some(all) = collection.frozen_at(at) {
            return Ok((Source::All(all), at));
        }
        match collection.snapshot_at(scope, &from.start, at) {
            Ok(snapshot) => Ok((Source::Some(snapshot.entries), at)),
            Err(_) if from.revision.is_some() => Err(expired_continue(&from.start, scope)),
            Err(_) => Err(ApiError::expired(format!(
                "The resourceVersion for the provided list is too old. (asked for {at})"
            ))),
        }
    }

    /// The present; its revision is one that every object in it has reached.
    fn present(
        &self,
        collection: &Collection,
        view: &View,
        scope: &str,
        start: &str,
    ) -> (Source, Revision) {
        let passed = self.feed.revision();
        let (source, newest) = match view {
            View::Whole => {
                let all = collection.freeze();
                let newest = all.newest;
                (Source::All(all), newest)
            }
            view => {
                let snapshot = collection.snapshot_of(view, scope, start);
                (Source::Some(snapshot.entries), snapshot.newest)
            }
        };
        (source, passed.max(newest))
    }
}

/// Where a page comes from.
enum Source {
    /// All objects of the collection, of which it takes its part.
    All(Frozen),
    /// Those from the page's start on.
    Some(Vec<Arc<Entry>>),
}

impl Source {
    fn range<'a>(
        &'a self,
        scope: &'a str,
        start: &'a str,
    ) -> Box<dyn Iterator<Item = &'a Arc<Entry>> + Send + 'a> {
        match self {
            Self::All(all) => Box::new(all.range(scope, start)),
            Self::Some(entries) => Box::new(entries.iter()),
        }
    }
}

/// Where a page starts.
#[derive(Debug, Default, PartialEq, Eq)]
struct From {
    /// The revision of the list; none for the present.
    revision: Option<Revision>,
    /// The first key; empty for the first page.
    start: String,
    /// How many objects are left, if an earlier page counted them.
    left: Option<usize>,
}

/// What all keys of a list start with: as much as is known of them, so that a list of one name looks at no other object.
fn scope(resource: &Resource, namespace: &str, selector: &Selector) -> String {
    let name = selector.name().unwrap_or_default();
    match (resource.scope, namespace) {
        (Scope::Cluster, _) => name.to_owned(),
        (Scope::Namespaced, "") => String::new(),
        (Scope::Namespaced, namespace) => format!("{namespace}/{name}"),
    }
}

/// What a selector leaves in view: one object, or those with one value of the indexed field, where it says so.
pub fn view(
    resource: &Resource,
    collection: &Collection,
    namespace: &str,
    name: Option<&str>,
    selector: &Selector,
) -> View {
    match (name, resource.scope, namespace) {
        (Some(name), Scope::Cluster, _) => return View::Object(name.into()),
        (Some(name), Scope::Namespaced, namespace) if !namespace.is_empty() => {
            return View::Object(format!("{namespace}/{name}").into());
        }
        _ => {}
    }
    let value = collection
        .indexed()
        .filter(|_| resource.storage_version.is_none())
        .and_then(|field| selector.exactly(field));
    match value {
        Some(value) if !value.is_empty() => View::Field(value.into()),
        _ => View::Whole,
    }
}

/// Whether an object matches; `converted` is the resource in whose version it is served, where that is not the stored one.
pub fn matches(selector: &Selector, entry: &Entry, converted: Option<&Resource>) -> bool {
    match converted {
        Some(resource) if !selector.is_empty() => {
            let mut object = entry.parse();
            resource.convert(&mut object, &resource.gvk);
            selector.matches_converted(entry, &object, resource)
        }
        _ => selector.matches(entry),
    }
}

/// A token as kube-apiserver makes it (apiserver, `storage/continue.go`); `start` is below the scope.
///
/// Ours says how many objects are left besides, so that they are counted once and not for each page.
fn token(revision: Revision, last: &str, scope: &str, left: Option<usize>) -> String {
    let start = format!("{}\0", last.strip_prefix(scope).unwrap_or(last));
    let mut token = json!({ "v": "meta.k8s.io/v1", "rv": revision, "start": start });
    if let Some(left) = left {
        token["left"] = left.into();
    }
    URL_SAFE_NO_PAD.encode(token.to_string())
}

/// Where the page of a token starts.
fn parse_token(text: &str, scope: &str) -> Result<From, ApiError> {
    let invalid =
        |detail: &str| ApiError::bad_request(format!("continue key is not valid: {detail}"));
    let json = URL_SAFE_NO_PAD
        .decode(text.trim_end_matches('='))
        .map_err(|_| invalid("illegal base64 data"))?;
    let token: Value = serde_json::from_slice(&json).map_err(|_| invalid("it is not JSON"))?;
    if token["v"] != "meta.k8s.io/v1" {
        return Err(ApiError::bad_request(
            "continue key is not valid: server does not recognize this encoded version",
        ));
    }
    let start = token["start"].as_str().unwrap_or_default();
    if start.is_empty() || start.split('/').any(|part| part == "..") {
        return Err(invalid("it has no start"));
    }
    let start = format!("{scope}{start}");
    match token["rv"].as_i64() {
        Some(0) | None => Err(invalid("incorrect encoded start resourceVersion")),
        Some(revision) => Ok(From {
            revision: u64::try_from(revision).ok(),
            start,
            left: token["left"]
                .as_u64()
                .and_then(|left| usize::try_from(left).ok()),
        }),
    }
}

/// The reply to a token whose revision is gone: 410, with a token that goes on from the present.
fn expired_continue(start: &str, scope: &str) -> ApiError {
    let start = start.strip_prefix(scope).unwrap_or(start);
    let token = json!({ "v": "meta.k8s.io/v1", "rv": -1, "start": start });
    let token = URL_SAFE_NO_PAD.encode(token.to_string());
    let mut error = ApiError::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without \
         the continue parameter, or use the continue token in this response to retrieve the remainder of the results. \
         Continuing with the provided token results in an inconsistent list - objects that were created, modified, or \
         deleted between the time the first chunk was returned and now may show up in the list.",
    );
    error.details = json!({ CONTINUE: token });
    error
}

/// Where [`ApiError::details`] carries a token for the Status' `metadata.continue`; never sent as a detail.
pub const CONTINUE: &str = "\0continue";
