//! Paths: what a request is about (apiserver, `endpoints/request/requestinfo.go`).

use http::Method;

use super::query::{Query, decode};

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// An object, a collection or a subresource of the API.
    Resource(ResourcePath),
    /// Anything else: discovery, health, metrics.
    Other,
}

/// A path below `/api/v1` or `/apis/<group>/<version>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourcePath {
    /// The API group; empty for the core group.
    pub group: String,
    /// The version.
    pub version: String,
    /// The namespace; empty for all, or for objects of the cluster. Of a namespace itself its name, by which access to it is granted.
    pub namespace: String,
    /// Whether the path leads through a namespace.
    pub inside: bool,
    /// The plural name.
    pub resource: String,
    /// The object's name; empty for the collection.
    pub name: String,
    /// The subresource; empty for the object.
    pub subresource: String,
    /// What follows the subresource, with its leading slash (proxies).
    pub rest: String,
    /// Whether the old `/watch/` stood in the path.
    pub watch: bool,
}

/// Takes a path apart.
pub fn parse(path: &str) -> Route {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let mut found = ResourcePath::default();
    match parts.next() {
        Some("api") => {}
        Some("apis") => match parts.next() {
            Some(group) => found.group = decode(group, false),
            None => return Route::Other,
        },
        _ => return Route::Other,
    }
    let Some(version) = parts.next() else {
        return Route::Other;
    };
    found.version = decode(version, false);
    let mut rest: Vec<String> = parts.map(|part| decode(part, false)).collect();
    if rest.first().is_some_and(|part| part == "watch") {
        found.watch = true;
        rest.remove(0);
    }
    // `namespaces/<ns>/<resource>` is in a namespace; `namespaces/<name>[/status|finalize]` is the namespace itself.
    if rest.len() >= 3 && rest[0] == "namespaces" && !matches!(&*rest[2], "status" | "finalize") {
        found.namespace = rest.remove(1);
        found.inside = true;
        rest.remove(0);
    }
    let mut rest = rest.into_iter();
    let Some(resource) = rest.next() else {
        return Route::Other;
    };
    found.resource = resource;
    found.name = rest.next().unwrap_or_default();
    found.subresource = rest.next().unwrap_or_default();
    let tail: Vec<String> = rest.collect();
    if found.subresource == "proxy" {
        // Kept as the client wrote it, so that escapes reach the backend unchanged.
        found.rest = raw_tail(path, tail.len()).to_owned();
    } else if !tail.is_empty() {
        found.rest = format!("/{}", tail.join("/"));
    }
    if found.resource == "namespaces" && found.group.is_empty() {
        found.namespace.clone_from(&found.name);
    }
    Route::Resource(found)
}

/// The end of a path from the slash before its last `parts` parts on, empty parts between and behind them included.
fn raw_tail(path: &str, parts: usize) -> &str {
    let mut left = path.trim_end_matches('/');
    for _ in 0..parts {
        let (before, _) = left.rsplit_once('/').unwrap_or_default();
        left = before.trim_end_matches('/');
    }
    &path[left.len()..]
}

impl ResourcePath {
    /// Whether a request for it waits for something to happen: a watch, a log that may be followed, a session, a proxy.
    pub fn waits(&self, method: &Method, query: &Query) -> bool {
        let streams = ["log", "exec", "attach", "portforward", "proxy"];
        self.verb(method, query) == "watch" || streams.contains(&&*self.subresource)
    }

    /// The verb of authorization.
    pub fn verb(&self, method: &Method, query: &Query) -> &'static str {
        let watch = self.watch || query.flag("watch");
        match *method {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if self.name.is_empty() => "deletecollection",
            Method::DELETE => "delete",
            _ if watch && self.subresource.is_empty() => "watch",
            _ if self.name.is_empty() => "list",
            _ => "get",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(path: &str) -> ResourcePath {
        match parse(path) {
            Route::Resource(found) => found,
            Route::Other => panic!("{path} is no resource"),
        }
    }

    #[test]
    fn paths_name_objects_collections_and_subresources() {
        let pod = resource("/api/v1/namespaces/a/pods/b/log");
        assert_eq!(
            (
                &*pod.namespace,
                &*pod.resource,
                &*pod.name,
                &*pod.subresource
            ),
            ("a", "pods", "b", "log")
        );
        let all = resource("/apis/apps/v1/deployments");
        assert_eq!(
            (&*all.group, &*all.namespace, &*all.resource),
            ("apps", "", "deployments")
        );
        let namespace = resource("/api/v1/namespaces/a/finalize");
        assert_eq!(
            (
                &*namespace.resource,
                &*namespace.name,
                &*namespace.subresource
            ),
            ("namespaces", "a", "finalize")
        );
        let proxy = resource("/api/v1/nodes/n/proxy/a%2Fb/c");
        assert_eq!((&*proxy.subresource, &*proxy.rest), ("proxy", "/a%2Fb/c"));
        for (path, rest) in [
            (
                "/api/v1/namespaces/proxy-1/pods/proxy/proxy/x/proxy",
                "/x/proxy",
            ),
            ("/api/v1/namespaces/proxy-1/pods/p/proxy", ""),
            ("/api/v1/namespaces/a/pods/p/proxy/", "/"),
            ("/api/v1/namespaces/a/pods/p/proxy//x//y/", "//x//y/"),
        ] {
            assert_eq!(resource(path).rest, rest, "{path}");
        }
        assert!(resource("/api/v1/watch/pods").watch);
        for other in [
            "/",
            "/api",
            "/api/v1",
            "/apis/apps/v1",
            "/healthz",
            "/openapi/v2",
        ] {
            assert_eq!(parse(other), Route::Other, "{other}");
        }
    }
}
