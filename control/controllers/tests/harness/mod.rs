//! A control plane in the test's own process: API server on a temporary store, controllers and scheduler.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use knarr_api::auth::UserInfo;
use knarr_api::pki::Pki;
use knarr_api::server::{ApiServer, ApiServerConfig};
use knarr_controllers::supervise::Health;
use knarr_controllers::{Config, Credentials};
use knarr_store::RedbStore;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// How long a test waits for something that has to happen.
const DEADLINE: Duration = Duration::from_secs(20);

/// Which requests have to wait, and which are refused.
#[derive(Clone)]
pub struct Gate {
    closed_for: Arc<dyn Fn(&http::request::Parts) -> Verdict + Send + Sync>,
    open: Arc<watch::Sender<bool>>,
}

/// What a closed gate does with a request.
#[allow(dead_code, reason = "not every test file has a gate")]
pub enum Verdict {
    Pass,
    Wait,
    /// It fails, as if the connection had broken.
    Break,
}

#[allow(dead_code, reason = "not every test file has a gate")]
impl Gate {
    /// A closed gate.
    pub fn new(
        closed_for: impl Fn(&http::request::Parts) -> Verdict + Send + Sync + 'static,
    ) -> Self {
        Self {
            closed_for: Arc::new(closed_for),
            open: Arc::new(watch::Sender::new(false)),
        }
    }

    /// Lets everything pass from now on.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    async fn pass(&self, request: http::request::Parts) -> Result<(), std::io::Error> {
        if *self.open.borrow() {
            return Ok(());
        }
        match (self.closed_for)(&request) {
            Verdict::Pass => Ok(()),
            Verdict::Break => Err(std::io::Error::other("broken on purpose")),
            Verdict::Wait => {
                let opened = self.open.subscribe().wait_for(|open| *open).await.is_ok();
                assert!(opened, "the gate went");
                Ok(())
            }
        }
    }
}

/// The control plane; it stops when dropped.
pub struct Cluster {
    pub client: Client,
    /// How the loops do.
    pub health: Health,
    api: ApiServer,
    pki: Pki,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Cluster {
    /// Starts everything.
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Starts everything, with some settings of the controllers changed.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let cluster = Self::start_api().await;
        let mut config = Config::default();
        change(&mut config);
        cluster.start_controllers(config, None);
        cluster.start_scheduler(None);
        cluster
    }

    /// Starts the scheduler, behind a gate.
    pub fn start_scheduler(&self, gate: Option<Gate>) {
        tokio::spawn(knarr_scheduler::run(
            gated(
                &self.api,
                UserInfo::component("system:kube-scheduler"),
                gate,
            ),
            knarr_scheduler::Config::default(),
            self.health.clone(),
            self.stop.clone(),
        ));
    }

    /// Starts the API server alone.
    pub async fn start_api() -> Self {
        // Another test of this process may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().expect("a directory");
        let pki = Pki::open(&dir.path().join("tls")).expect("keys");
        let store = RedbStore::open(&dir.path().join("state.redb")).expect("a store");
        let api = ApiServer::open(ApiServerConfig::default(), Arc::new(store), &pki)
            .await
            .expect("an API server");
        let admin = UserInfo::new("admin", ["system:masters".to_owned()]);
        Self {
            client: Client::new(api.local(admin), "default"),
            health: Health::default(),
            stop: CancellationToken::new(),
            api,
            pki,
            _dir: dir,
        }
    }

    /// A client that acts as this user.
    #[allow(dead_code, reason = "not every test file acts as others")]
    pub fn client(&self, user: UserInfo) -> Client {
        Client::new(self.api.local(user), "default")
    }

    /// Starts the controllers; requests that the gate is closed for wait, as those to a slow server would.
    pub fn start_controllers(&self, config: Config, gate: Option<Gate>) {
        let config = Config {
            ca_certificate_pem: self.pki.ca_cert_pem().to_owned(),
            ca_key_pem: Some(self.pki.ca_key_pem().to_owned()),
            cluster_cidrs: vec![(IpAddr::from([10, 42, 0, 0]), 16)],
            ..config
        };
        let user = UserInfo::component("system:kube-controller-manager");
        let manager = gated(&self.api, user, gate.clone());
        let api = self.api.clone();
        let credentials = Credentials::new(manager, move |name| {
            let account = UserInfo::service_account("kube-system", name);
            gated(&api, account, gate.clone())
        });
        tokio::spawn(knarr_controllers::run(
            credentials,
            config,
            self.health.clone(),
            self.stop.clone(),
        ));
    }

    /// Keeps the lease of a node renewed and its status reported, as its kubelet would, until dropped.
    #[allow(dead_code, reason = "not every test file has nodes")]
    pub fn kubelet_of(&self, name: &'static str) -> tokio::task::AbortHandle {
        let api: Api<Node> = Api::all(self.client.clone());
        let beat = async move {
            loop {
                let now = jiff::Timestamp::now().to_string();
                let status = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "", "lastHeartbeatTime": now}]}});
                let patch = Patch::Strategic(status);
                let done = api
                    .patch_status(name, &PatchParams::default(), &patch)
                    .await;
                done.expect("its status");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::spawn(beat).abort_handle()
    }

    /// The API of a kind in namespace `default`.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Creates an object from JSON.
    pub async fn create<K>(&self, api: &Api<K>, object: Value) -> K
    where
        K: kube::Resource + serde::Serialize + DeserializeOwned + Clone + std::fmt::Debug,
    {
        let object = serde_json::from_value(object).expect("an object of this kind");
        api.create(&PostParams::default(), &object)
            .await
            .expect("it is created")
    }

    /// A node that is ready, as a kubelet would report it.
    pub async fn node(&self, name: &str) {
        let api: Api<Node> = Api::all(self.client.clone());
        self.create(
            &api,
            json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}}),
        )
        .await;
        let now = jiff::Timestamp::now().to_string();
        let status = json!({"status": {
            "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"}, "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "", "lastHeartbeatTime": now, "lastTransitionTime": now}],
        }});
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await
            .expect("its status");
    }

    /// Makes a pod run and be ready, as a kubelet would.
    pub async fn make_ready(&self, pod: &Pod, ip: &str) {
        let api: Api<Pod> = Api::namespaced(
            self.client.clone(),
            pod.metadata.namespace.as_deref().unwrap_or("default"),
        );
        let now = jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string();
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": now}]}});
        let result = api
            .patch_status(
                pod.metadata.name.as_deref().unwrap_or_default(),
                &PatchParams::default(),
                &Patch::Strategic(status),
            )
            .await;
        if let Err(error) = result
            && !matches!(&error, kube::Error::Api(status) if status.code == 404)
        {
            panic!("status of a pod: {error}");
        }
    }

    #[allow(dead_code, reason = "not every test file has pods")]
    /// Plays the kubelet: pods that have a node become ready, pods that are deleted go.
    pub async fn kubelet_round(&self) {
        let api: Api<Pod> = Api::all(self.client.clone());
        for (number, pod) in api
            .list(&ListParams::default())
            .await
            .expect("pods")
            .items
            .into_iter()
            .enumerate()
        {
            let has_node = pod
                .spec
                .as_ref()
                .is_some_and(|spec| spec.node_name.is_some());
            let running = pod
                .status
                .as_ref()
                .is_some_and(|status| status.phase.as_deref() == Some("Running"));
            if pod.metadata.deletion_timestamp.is_some() {
                let params = kube::api::DeleteParams {
                    grace_period_seconds: Some(0),
                    ..Default::default()
                };
                let own: Api<Pod> = Api::namespaced(
                    self.client.clone(),
                    pod.metadata.namespace.as_deref().unwrap_or("default"),
                );
                let _ = own
                    .delete(pod.metadata.name.as_deref().unwrap_or_default(), &params)
                    .await;
            } else if has_node && !running {
                self.make_ready(&pod, &format!("10.42.0.{}", number + 2))
                    .await;
            }
        }
    }
}

/// Asks again and again until the answer is `Ok`; fails with the last answer after a deadline.
pub async fn eventually<T, F, Fut>(what: &str, ask: F) -> T
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let start = tokio::time::Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(last) => assert!(start.elapsed() < DEADLINE, "{what}: {last}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A client that acts as this user, behind a gate if there is one.
fn gated(api: &ApiServer, user: UserInfo, gate: Option<Gate>) -> Client {
    let service = api.local(user);
    let Some(gate) = gate else {
        return Client::new(service, "default");
    };
    let gated = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let (service, gate) = (service.clone(), gate.clone());
        let (head, body) = request.into_parts();
        async move {
            gate.pass(head.clone()).await?;
            let request = http::Request::from_parts(head, body);
            let Ok(answer) = service.oneshot(request).await;
            Ok::<_, std::io::Error>(answer)
        }
    });
    Client::new(gated, "default")
}
