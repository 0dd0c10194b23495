//! LIST: which objects, of which revision, in which pages.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use knarr_store::Revision;
use serde_json::{Value, json};

use super::Registry;
use super::collection::{Collection, Snapshot};
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
    /// From the query parameters of a list.
    ///
    /// # Errors
    ///
    /// 422 for combinations that make no sense, 400 for a revision that is no number.
    pub fn parse(version: &str, matching: &str, continues: bool) -> Result<Self, ApiError> {
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
        Ok(if matching == "Exact" {
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
        let (snapshot, revision) =
            self.pages(collection, &view, &scope, at, request.continue_token)?;
        let converted = resource.storage_version.as_ref().map(|_| resource);
        let mut entries = Vec::new();
        let mut rest = snapshot.entries.into_iter();
        let mut more = false;
        for entry in rest.by_ref() {
            if !matches(&request.selector, &entry, converted) {
                continue;
            }
            if request.limit > 0 && entries.len() == request.limit {
                more = true;
                break;
            }
            entries.push(entry);
        }
        let mut page = Page {
            entries,
            revision,
            continue_token: String::new(),
            remaining: None,
        };
        if more && let Some(last) = page.entries.last() {
            page.continue_token = token(revision, &last.key, &scope);
            if request.selector.is_empty() {
                page.remaining = Some(rest.len() + 1);
            }
        }
        Ok(page)
    }

    fn pages(
        &self,
        collection: &Collection,
        view: &View,
        scope: &str,
        at: At,
        continue_token: &str,
    ) -> Result<(Snapshot, Revision), ApiError> {
        let expired = |version| {
            ApiError::expired(format!(
                "The resourceVersion for the provided list is too old. (asked for {version})"
            ))
        };
        if !continue_token.is_empty() {
            let (revision, start) = parse_token(continue_token, scope)?;
            let Some(revision) = revision else {
                return Ok(self.present(collection, view, scope, &start));
            };
            return match collection.snapshot_at(scope, &start, revision) {
                Ok(snapshot) => Ok((snapshot, revision)),
                Err(_) => Err(expired_continue(&start, scope)),
            };
        }
        match at {
            At::Newest | At::NotOlderThan(_) => Ok(self.present(collection, view, scope, "")),
            At::Exact(revision) => match collection.snapshot_at(scope, "", revision) {
                Ok(snapshot) => Ok((snapshot, revision)),
                Err(_) => Err(expired(revision)),
            },
        }
    }

    /// The present; its revision is one that every object in it has reached.
    fn present(
        &self,
        collection: &Collection,
        view: &View,
        scope: &str,
        start: &str,
    ) -> (Snapshot, Revision) {
        let passed = self.feed.revision();
        let snapshot = collection.snapshot_of(view, scope, start);
        let revision = passed.max(snapshot.newest);
        (snapshot, revision)
    }
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
            crate::kinds::convert(&mut object, &resource.gvk);
            selector.matches_converted(entry, &object, resource)
        }
        _ => selector.matches(entry),
    }
}

/// A token as kube-apiserver makes it (apiserver, `storage/continue.go`); `start` is below the scope.
fn token(revision: Revision, last: &str, scope: &str) -> String {
    let start = format!("{}\0", last.strip_prefix(scope).unwrap_or(last));
    encode_token(revision as i64, &start)
}

fn encode_token(revision: i64, start: &str) -> String {
    URL_SAFE_NO_PAD
        .encode(json!({ "v": "meta.k8s.io/v1", "rv": revision, "start": start }).to_string())
}

/// The revision (`None` for the present) and the key from which a page starts.
fn parse_token(text: &str, scope: &str) -> Result<(Option<Revision>, String), ApiError> {
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
        Some(revision) => Ok((u64::try_from(revision).ok(), start)),
    }
}

/// The reply to a token whose revision is gone: 410, with a token that goes on from the present.
fn expired_continue(start: &str, scope: &str) -> ApiError {
    let token = encode_token(-1, start.strip_prefix(scope).unwrap_or(start));
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
