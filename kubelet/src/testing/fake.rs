//! A runtime and an API server that exist only in memory, for tests of a pod's task as a whole.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use knarr_engine::types::{
    ContainerConfig, ContainerId, ContainerState, ContainerStatus, Event, ExecOutput, ImageStatus,
    LinuxResources, RegistryAuth, SandboxConfig, SandboxId, SandboxState, SandboxStatus, Stats,
};
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};

use super::process;
use crate::runtime::{PodStream, Runtime, RuntimeError, Session, StreamRequest};

/// Sandboxes and containers that only claim to run.
pub(crate) struct FakeRuntime {
    sandboxes: Mutex<HashMap<SandboxId, SandboxStatus>>,
    containers: Mutex<HashMap<ContainerId, ContainerStatus>>,
    events: broadcast::Sender<Event>,
    /// Why every pull fails, if it does.
    pub(crate) pull_error: Mutex<Option<String>>,
    /// Whose credentials came with the last pull, in their order.
    pub(crate) users: Mutex<Vec<String>>,
    /// Sandboxes are made while this holds true.
    pub(crate) makes_sandboxes: watch::Sender<bool>,
    /// Where containers that are made from now on have their log.
    pub(crate) log_path: Mutex<Option<std::path::PathBuf>>,
    /// Whether a process of a session has read its input to the end.
    pub(crate) input_ended: watch::Sender<bool>,
    /// Calls that panic, and how often they still do.
    pub(crate) panics: Mutex<HashMap<&'static str, usize>>,
    images: Mutex<Vec<ImageStatus>>,
    /// Images that cannot be removed.
    pub(crate) unremovable: Mutex<HashSet<String>>,
    /// What was asked for, in order: `<call> <id>`.
    pub(crate) calls: Mutex<Vec<String>>,
    /// How long a command takes.
    pub(crate) exec_takes: Mutex<Duration>,
    /// Whether running containers ignore their stop signals.
    pub(crate) ignores_stops: AtomicBool,
}

impl FakeRuntime {
    pub(crate) fn new() -> Self {
        Self {
            sandboxes: Mutex::default(),
            containers: Mutex::default(),
            events: broadcast::channel(64).0,
            pull_error: Mutex::default(),
            users: Mutex::default(),
            makes_sandboxes: watch::channel(true).0,
            log_path: Mutex::default(),
            input_ended: watch::channel(false).0,
            panics: Mutex::default(),
            images: Mutex::default(),
            unremovable: Mutex::default(),
            calls: Mutex::default(),
            exec_takes: Mutex::default(),
            ignores_stops: AtomicBool::default(),
        }
    }

    /// Notes a call, and panics if it is to.
    fn called(&self, call: &'static str, id: &str) {
        self.calls.lock().push(format!("{call} {id}"));
        let mut panics = self.panics.lock();
        if let Some(left) = panics.get_mut(call).filter(|left| **left > 0) {
            *left -= 1;
            drop(panics);
            panic!("{call} panics");
        }
    }

    /// How often something was asked for.
    pub(crate) fn count(&self, call: &str) -> usize {
        self.calls.lock().iter().filter(|c| *c == call).count()
    }

    /// Adds an image that nobody uses.
    pub(crate) fn add_image(&self, id: &str) {
        let image = ImageStatus {
            id: id.to_owned(),
            ..Self::image(id)
        };
        self.images.lock().push(image);
    }

    /// The images that are there, in order of their ids.
    pub(crate) fn image_ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.images.lock().iter().map(|i| i.id.clone()).collect();
        ids.sort();
        ids
    }

    /// The newest sandbox loses its shim: it and what runs in it ends.
    pub(crate) fn lose_sandbox(&self) {
        let newest = {
            let mut sandboxes = self.sandboxes.lock();
            let newest = sandboxes.values_mut().max_by_key(|s| s.config.attempt);
            let newest = newest.expect("a sandbox");
            newest.state = SandboxState::NotReady;
            newest.id.clone()
        };
        let containers = self.containers.lock();
        let inside = containers.values().filter(|c| c.sandbox_id == newest);
        let inside: Vec<ContainerId> = inside.map(|c| c.id.clone()).collect();
        drop(containers);
        for id in inside {
            self.end_id(&id, 137);
        }
    }

    /// How many sandboxes and containers there are.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.sandboxes.lock().len(), self.containers.lock().len())
    }

    /// The command of the newest container of this name.
    pub(crate) fn config(&self, name: &str) -> Option<ContainerConfig> {
        let containers = self.containers.lock();
        let newest = containers
            .values()
            .filter(|c| c.config.name == name)
            .max_by_key(|c| c.config.attempt);
        newest.map(|c| c.config.clone())
    }

    /// Ends the running container of this name.
    pub(crate) fn end(&self, name: &str, exit_code: i32) {
        let id = self
            .containers
            .lock()
            .values()
            .find(|c| c.config.name == name && c.state == ContainerState::Running)
            .map(|c| c.id.clone());
        self.end_id(&id.expect("a running container"), exit_code);
    }

    /// Says when the ended container of this name has ended.
    pub(crate) fn ended_at(&self, name: &str, at: SystemTime) {
        for status in self.containers.lock().values_mut() {
            if status.config.name == name {
                status.finished_at = Some(at);
            }
        }
    }

    fn end_id(&self, id: &ContainerId, exit_code: i32) {
        let mut containers = self.containers.lock();
        let Some(status) = containers
            .get_mut(id)
            .filter(|c| c.state == ContainerState::Running)
        else {
            return;
        };
        status.state = ContainerState::Exited;
        status.exit_code = exit_code;
        status.finished_at = Some(SystemTime::now());
        status.reason = if exit_code == 0 { "Completed" } else { "Error" }.to_owned();
        let event = Event::ContainerExited {
            sandbox_id: status.sandbox_id.clone(),
            container_id: id.clone(),
            pod_uid: "u".to_owned(),
        };
        let _nobody = self.events.send(event);
    }

    fn image(reference: &str) -> ImageStatus {
        ImageStatus {
            id: "sha256:1".to_owned(),
            repo_tags: vec![reference.to_owned()],
            repo_digests: Vec::new(),
            size: 1,
            user: String::new(),
        }
    }
}

fn missing<T>(what: &str) -> Result<T, RuntimeError> {
    Err(RuntimeError::NotFound {
        what: what.to_owned(),
    })
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn configure_network(&self, _pod_cidr: ipnet::IpNet) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn run_sandbox(&self, config: SandboxConfig) -> Result<SandboxId, RuntimeError> {
        let mut may = self.makes_sandboxes.subscribe();
        may.wait_for(|may| *may).await.expect("the sender lives");
        let id = SandboxId(format!("sandbox-{}", config.attempt));
        self.called("run_sandbox", &id.0);
        let status = SandboxStatus {
            id: id.clone(),
            config,
            state: SandboxState::Ready,
            created_at: SystemTime::now(),
            ips: vec![[10, 42, 0, 7].into()],
        };
        self.sandboxes.lock().insert(id.clone(), status);
        Ok(id)
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        self.called("stop_sandbox", &id.0);
        match self.sandboxes.lock().get_mut(id) {
            Some(status) => status.state = SandboxState::NotReady,
            None => return missing("sandbox"),
        }
        Ok(())
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        self.called("remove_sandbox", &id.0);
        self.sandboxes.lock().remove(id);
        Ok(())
    }

    async fn sandbox_status(&self, id: &SandboxId) -> Result<SandboxStatus, RuntimeError> {
        self.sandboxes
            .lock()
            .get(id)
            .cloned()
            .map_or_else(|| missing("sandbox"), Ok)
    }

    async fn list_sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        Ok(self.sandboxes.lock().values().cloned().collect())
    }

    async fn create_container(
        &self,
        sandbox: &SandboxId,
        config: ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        let id = ContainerId(format!("{}-{}", config.name, config.attempt));
        let status = ContainerStatus {
            id: id.clone(),
            sandbox_id: sandbox.clone(),
            config,
            state: ContainerState::Created,
            created_at: SystemTime::now(),
            started_at: None,
            finished_at: None,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            image_digest_ref: "sha256:1".to_owned(),
            pid: None,
            log_path: self
                .log_path
                .lock()
                .clone()
                .unwrap_or_else(|| "/nonexistent".into()),
        };
        self.containers.lock().insert(id.clone(), status);
        Ok(id)
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        match self.containers.lock().get_mut(id) {
            Some(status) => {
                status.state = ContainerState::Running;
                status.started_at = Some(SystemTime::now());
                Ok(())
            }
            None => missing("container"),
        }
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        self.called("stop_container", &id.0);
        if self.ignores_stops.load(Ordering::Relaxed) {
            tokio::time::sleep(grace).await;
            self.end_id(id, 137);
        } else {
            self.end_id(id, 143);
        }
        Ok(())
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.containers.lock().remove(id);
        Ok(())
    }

    async fn container_status(&self, id: &ContainerId) -> Result<ContainerStatus, RuntimeError> {
        self.called("container_status", &id.0);
        self.containers
            .lock()
            .get(id)
            .cloned()
            .map_or_else(|| missing("container"), Ok)
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        Ok(self.containers.lock().values().cloned().collect())
    }

    async fn exec_sync(
        &self,
        _id: &ContainerId,
        command: Vec<String>,
        _timeout: Option<Duration>,
    ) -> Result<ExecOutput, RuntimeError> {
        self.calls
            .lock()
            .push(format!("exec {}", command.join(" ")));
        let takes = *self.exec_takes.lock();
        tokio::time::sleep(takes).await;
        let exit_code = i32::from(command.first().is_some_and(|c| c == "false"));
        Ok(ExecOutput {
            exit_code,
            ..ExecOutput::default()
        })
    }

    async fn exec(
        &self,
        _id: &ContainerId,
        request: StreamRequest,
    ) -> Result<Session, RuntimeError> {
        process::run(&request, self.input_ended.clone())
    }

    async fn attach(
        &self,
        id: &ContainerId,
        request: StreamRequest,
    ) -> Result<Session, RuntimeError> {
        let status = self.container_status(id).await?;
        if status.state != ContainerState::Running {
            return missing("container");
        }
        let request = StreamRequest {
            command: status.config.command,
            ..request
        };
        process::run(&request, self.input_ended.clone())
    }

    async fn port_forward(&self, _id: &SandboxId, port: u16) -> Result<PodStream, RuntimeError> {
        let connected = PodStream::connect(("127.0.0.1", port)).await;
        connected.map_err(|error| RuntimeError::Failed {
            message: error.to_string(),
        })
    }

    async fn container_stats(&self, _id: &ContainerId) -> Result<Stats, RuntimeError> {
        Ok(Stats::default())
    }

    async fn sandbox_stats(&self, _id: &SandboxId) -> Result<Stats, RuntimeError> {
        Ok(Stats::default())
    }

    async fn set_cgroup(
        &self,
        _path: &str,
        _resources: LinuxResources,
    ) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn remove_cgroup(&self, _path: &str) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn pull_image(
        &self,
        reference: &str,
        credentials: Vec<RegistryAuth>,
    ) -> Result<ImageStatus, RuntimeError> {
        let users = credentials.into_iter().map(|auth| auth.username);
        *self.users.lock() = users.collect();
        match self.pull_error.lock().clone() {
            Some(message) => Err(RuntimeError::Failed { message }),
            None => Ok(Self::image(reference)),
        }
    }

    async fn image_status(&self, reference: &str) -> Result<Option<ImageStatus>, RuntimeError> {
        Ok(self
            .pull_error
            .lock()
            .is_none()
            .then(|| Self::image(reference)))
    }

    async fn list_images(&self) -> Result<Vec<ImageStatus>, RuntimeError> {
        Ok(self.images.lock().clone())
    }

    async fn remove_image(&self, id: &str) -> Result<(), RuntimeError> {
        if self.unremovable.lock().contains(id) {
            let message = format!("image {id} cannot be removed");
            return Err(RuntimeError::Failed { message });
        }
        self.images.lock().retain(|image| image.id != id);
        Ok(())
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}

/// What the API server was told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    /// The pod's status, patches merged.
    pub(crate) status: Value,
    /// `<reason>: <message>` of each event.
    pub(crate) events: Vec<String>,
    /// The body of the pod's deletion.
    pub(crate) deleted: Option<Value>,
}

/// The ConfigMaps of an API server, and how they came to be so.
#[derive(Default)]
struct ConfigMaps {
    now: HashMap<String, Value>,
    /// What watches tell: each change with the name. Its place, from 1, is the version of the whole and of the object.
    changes: Vec<(String, Value)>,
}

impl ConfigMaps {
    fn put(&mut self, name: &str, mut object: Value) {
        let version = (self.changes.len() + 1).to_string();
        object["metadata"]["resourceVersion"] = json!(version);
        let kind = match self.now.insert(name.to_owned(), object.clone()) {
            Some(_) => "MODIFIED",
            None => "ADDED",
        };
        let change = json!({"type": kind, "object": object});
        self.changes.push((name.to_owned(), change));
    }
}

/// An API server that takes everything and knows some ConfigMaps, and Secrets that stand among them.
#[derive(Clone)]
pub(crate) struct FakeApi {
    pub(crate) told: Arc<watch::Sender<Told>>,
    config_maps: Arc<watch::Sender<ConfigMaps>>,
}

impl FakeApi {
    pub(crate) fn new(config_maps: &[(&str, Value)]) -> Self {
        let api = Self {
            told: Arc::new(watch::channel(Told::default()).0),
            config_maps: Arc::new(watch::channel(ConfigMaps::default()).0),
        };
        for (name, object) in config_maps {
            api.put_config_map(name, object.clone());
        }
        api
    }

    /// Makes or replaces a ConfigMap; watches hear of it.
    pub(crate) fn put_config_map(&self, name: &str, object: Value) {
        self.config_maps.send_modify(|maps| maps.put(name, object));
    }

    /// The changes of one ConfigMap after a version, for ever.
    fn follow(
        &self,
        name: String,
        version: usize,
    ) -> impl Stream<Item = Result<Frame<Bytes>, std::io::Error>> + use<> {
        let maps = self.config_maps.subscribe();
        futures::stream::unfold((maps, version), move |(mut maps, told)| {
            let name = name.clone();
            async move {
                let next = |maps: &ConfigMaps| {
                    let mut rest = maps.changes.iter().enumerate().skip(told);
                    rest.find(|(_, (changed, _))| *changed == name)
                        .map(|(place, (_, change))| (place + 1, format!("{change}\n")))
                };
                // The server is gone with the test.
                let maps_now = maps.wait_for(|maps| next(maps).is_some()).await.ok()?;
                let (version, line) = next(&maps_now)?;
                drop(maps_now);
                Some((Ok(Frame::data(Bytes::from(line))), (maps, version)))
            }
        })
    }

    pub(crate) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        Client::new(service, "default")
    }

    async fn answer(
        &self,
        request: Request<Body>,
    ) -> Response<UnsyncBoxBody<Bytes, std::io::Error>> {
        let (parts, body) = request.into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let resource = path
            .rsplit('/')
            .find(|p| ["pods", "events", "configmaps", "services", "secrets"].contains(p));
        let parameter = |name: &str| {
            let mut pairs = form_urlencoded::parse(query.as_bytes());
            pairs.find(|(key, _)| key == name).map(|(_, value)| value)
        };
        let selector = parameter("fieldSelector").unwrap_or_default();
        let name = selector.strip_prefix("metadata.name=").unwrap_or_default();
        if parameter("watch").is_some() {
            let version = parameter("resourceVersion").and_then(|version| version.parse().ok());
            let events = match resource {
                Some("configmaps") => self
                    .follow(name.to_owned(), version.unwrap_or_default())
                    .boxed(),
                // A watch that says nothing.
                _ => futures::stream::pending().boxed(),
            };
            return Response::new(StreamBody::new(events).boxed_unsync());
        }
        let answer = match (parts.method.as_str(), resource.unwrap_or_default()) {
            // A Secret is looked up as a ConfigMap is, but nobody watches it change here.
            ("GET", "configmaps" | "secrets") => {
                let maps = self.config_maps.borrow();
                let items: Vec<&Value> = maps.now.get(name).into_iter().collect();
                let version = maps.changes.len().to_string();
                json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items})
            }
            ("GET", _) => {
                json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []})
            }
            ("POST", "events") => {
                let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
                let event = format!("{}: {}", text("reason"), text("message"));
                self.told.send_modify(|told| told.events.push(event));
                body
            }
            ("PATCH", "pods") => {
                self.told
                    .send_modify(|told| merge(&mut told.status, &body["status"]));
                json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p"}})
            }
            ("DELETE", "pods") => {
                self.told.send_modify(|told| told.deleted = Some(body));
                json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})
            }
            _ => body,
        };
        let body = Full::new(Bytes::from(answer.to_string())).map_err(|never| match never {});
        Response::new(body.boxed_unsync())
    }

    /// Waits until what was told fulfils a condition.
    pub(crate) async fn wait(&self, what: &str, condition: impl Fn(&Told) -> bool) -> Told {
        let mut told = self.told.subscribe();
        let wait = tokio::time::timeout(Duration::from_secs(10), told.wait_for(|t| condition(t)));
        match wait.await {
            Ok(told) => told.expect("the sender lives").clone(),
            Err(_) => panic!(
                "{what} did not happen; told so far: {:#?}",
                *self.told.borrow()
            ),
        }
    }
}

/// Lists are replaced; that is enough for what the tests look at.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else { return };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in patch {
        if value.is_null() {
            target.as_object_mut().expect("an object").remove(name);
        } else {
            target[name] = value.clone();
        }
    }
}
