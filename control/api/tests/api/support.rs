//! One server for one test.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use knarr_api::http::ResponseBody;
use knarr_api::http::local::LocalService;
use knarr_api::pki::Pki;
use knarr_api::{ApiServer, ApiServerConfig, UserInfo};
use knarr_store::{Durability, Op, RedbStore, Store};
use serde_json::{Value, json};
use tower::ServiceExt as _;

/// Nothing here takes longer.
pub const DEADLINE: Duration = Duration::from_secs(10);

pub struct Server {
    pub api: ApiServer,
    pub pki: Pki,
    service: LocalService,
    dir: Option<tempfile::TempDir>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Reply {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub body: Value,
}

impl Reply {
    /// The body, if the code is the expected one.
    #[track_caller]
    pub fn expect(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.body);
        self.body
    }

    /// The Status' message, if code and reason are the expected ones.
    #[track_caller]
    pub fn refused(self, code: u16, reason: &str) -> String {
        assert_eq!(
            (self.code, self.body["reason"].as_str()),
            (code, Some(reason)),
            "{}",
            self.body
        );
        assert_eq!(
            (&self.body["kind"], &self.body["status"]),
            (&json!("Status"), &json!("Failure"))
        );
        self.body["message"].as_str().unwrap_or_default().to_owned()
    }
}

impl Server {
    pub async fn start() -> Self {
        Self::start_with(ApiServerConfig::default()).await
    }

    pub async fn start_with(config: ApiServerConfig) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self::open(dir, config).await
    }

    async fn open(dir: tempfile::TempDir, config: ApiServerConfig) -> Self {
        let pki = Pki::open(&dir.path().join("tls")).expect("keys");
        let store = Arc::new(RedbStore::open(&dir.path().join("state.redb")).expect("a store"));
        Self::open_on(dir, config, store, pki).await
    }

    /// With these keys, on a store that `change` made of a real one.
    pub async fn start_on<S: Store>(
        change: impl FnOnce(RedbStore) -> Arc<S>,
        keys: impl FnOnce(&std::path::Path) -> Pki,
    ) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = RedbStore::open(&dir.path().join("state.redb")).expect("a store");
        let pki = keys(&dir.path().join("tls"));
        Self::open_on(dir, ApiServerConfig::default(), change(store), pki).await
    }

    async fn open_on(
        dir: tempfile::TempDir,
        config: ApiServerConfig,
        store: Arc<dyn Store>,
        pki: Pki,
    ) -> Self {
        let config = ApiServerConfig {
            advertise: "192.0.2.1:6443".parse().expect("an address"),
            ..config
        };
        Self::open_as(dir, config, store, pki).await
    }

    /// With all of this configuration.
    pub async fn open_as(
        dir: tempfile::TempDir,
        config: ApiServerConfig,
        store: Arc<dyn Store>,
        pki: Pki,
    ) -> Self {
        let api = ApiServer::open(config, store, &pki)
            .await
            .expect("a server");
        let service = api.local(UserInfo::new("admin", ["system:masters".to_owned()]));
        Self {
            api,
            pki,
            service,
            dir: Some(dir),
        }
    }

    /// Where its keys and its store are.
    pub fn dir(&self) -> &std::path::Path {
        self.dir
            .as_ref()
            .expect("it is there until a restart")
            .path()
    }

    /// The same server, asked by another user.
    pub fn acting(&self, user: &str, groups: &[&str]) -> Self {
        let user = UserInfo::new(user, groups.iter().map(|group| (*group).to_owned()));
        Self {
            api: self.api.clone(),
            pki: self.pki.clone(),
            service: self.api.local(user),
            dir: None,
        }
    }

    /// What the store's file would hold if the server were killed now.
    pub async fn stored_after_a_crash(&self, key: &str) -> Value {
        let copy = tempfile::tempdir().expect("a temporary directory");
        let path = copy.path().join("state.redb");
        std::fs::copy(self.dir().join("state.redb"), &path).expect("a copy of the store");
        let store = RedbStore::open(&path).expect("a store as after a crash");
        let kv = store.get(key).await.expect("a read");
        serde_json::from_slice(&kv.expect("the key is there").value).expect("JSON")
    }

    /// The same cluster after a restart.
    pub async fn restart(self) -> Self {
        self.restart_after(&[]).await
    }

    /// The same cluster after a restart, before which these keys were taken out of its store.
    pub async fn restart_after(self, removed: &[&str]) -> Self {
        let (dir, store) = self.close().await;
        let ops = removed.iter().map(|key| Op::Delete((*key).to_owned()));
        let ops: Vec<Op> = ops.collect();
        if !ops.is_empty() {
            let deleted = store.txn(Vec::new(), ops, Durability::Immediate).await;
            deleted.expect("a commit");
        }
        drop(store);
        Self::open(dir, ApiServerConfig::default()).await
    }

    /// Ends the server; its directory, and its store by itself.
    pub async fn close(mut self) -> (tempfile::TempDir, RedbStore) {
        let dir = self.dir.take().expect("it is there until a restart");
        drop(self);
        // The store closes when the feed's task has let go of it.
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            match RedbStore::open(&dir.path().join("state.redb")) {
                Ok(store) => return (dir, store),
                Err(error) => assert!(
                    tokio::time::Instant::now() < deadline,
                    "the store is still open: {error:?}"
                ),
            }
            tokio::task::yield_now().await;
        }
    }

    pub async fn raw(&self, request: Request<Full<Bytes>>) -> Response<ResponseBody> {
        let sent = self.service.clone().oneshot(request);
        tokio::time::timeout(DEADLINE, sent)
            .await
            .expect("an answer in time")
            .expect("never fails")
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: impl Into<Bytes>,
    ) -> Reply {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type)
            .body(Full::new(body.into()))
            .expect("a request");
        read(self.raw(request).await).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, "application/json", "").await
    }

    pub async fn get_as(&self, path: &str, accept: &str) -> Reply {
        let request = Request::get(path)
            .header("accept", accept)
            .body(Full::default())
            .expect("a request");
        read(self.raw(request).await).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(Method::POST, path, "application/json", body.to_string())
            .await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Reply {
        self.send(Method::PUT, path, "application/json", body.to_string())
            .await
    }

    pub async fn merge(&self, path: &str, patch: &Value) -> Reply {
        self.send(
            Method::PATCH,
            path,
            "application/merge-patch+json",
            patch.to_string(),
        )
        .await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        self.send(Method::DELETE, path, "application/json", "")
            .await
    }

    pub async fn watch(&self, path: &str) -> Events {
        let request = Request::get(path).body(Full::default()).expect("a request");
        let response = self.raw(request).await;
        assert_eq!(response.status(), 200);
        Events {
            body: response.into_body(),
            buffer: Vec::new(),
        }
    }

    /// Creates `count` config maps `m-000`, `m-001`, …
    pub async fn config_maps(&self, count: usize) {
        for index in 0..count {
            self.post(MAPS, &config_map(&format!("m-{index:03}")))
                .await
                .expect(201);
        }
    }
}

pub const MAPS: &str = "/api/v1/namespaces/default/configmaps";
pub const PODS: &str = "/api/v1/namespaces/default/pods";

pub async fn read(response: Response<ResponseBody>) -> Reply {
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.expect("a whole body").to_bytes();
    let body = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    Reply {
        code: parts.status.as_u16(),
        headers: parts.headers,
        body,
    }
}

/// The events of a watch.
pub struct Events {
    body: ResponseBody,
    buffer: Vec<u8>,
}

impl Events {
    /// The next event, or `None` at the end of the watch.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("an event is JSON"));
            }
            let frame = tokio::time::timeout(DEADLINE, self.body.frame())
                .await
                .expect("an event in time")?;
            let data = frame
                .expect("the watch goes on")
                .into_data()
                .expect("only data");
            self.buffer.extend_from_slice(&data);
        }
    }

    /// The next event's type and its object's name.
    pub async fn short(&mut self) -> (String, String) {
        let event = self.next().await.expect("the watch goes on");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (
            text(&event["type"]),
            text(&event["object"]["metadata"]["name"]),
        )
    }
}

pub fn config_map(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "k": "v" } })
}

pub fn pod(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": { "containers": [{ "name": "c", "image": "i" }] } })
}

impl Server {
    /// Gives a group a ClusterRole in the whole cluster.
    pub async fn allow(&self, group: &str, role: &str) {
        let api = "rbac.authorization.k8s.io";
        let binding = json!({ "metadata": { "name": format!("{group}-{role}") },
            "roleRef": { "apiGroup": api, "kind": "ClusterRole", "name": role },
            "subjects": [{ "apiGroup": api, "kind": "Group", "name": group }] });
        let path = format!("/apis/{api}/v1/clusterrolebindings");
        self.post(&path, &binding).await.expect(201);
    }

    pub async fn service_account(&self) {
        let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
        self.post("/api/v1/namespaces/default/serviceaccounts", &account)
            .await
            .expect(201);
    }
}
