//! What the node agent is told when it starts.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::identity::Identity;

/// The settings of one node agent, made once from the command line.
#[derive(Clone, Debug)]
pub struct KubeletConfig {
    /// The name of the Node object.
    pub node_name: String,
    /// The node's addresses, the primary one first: `InternalIP` of the Node and `hostIP` of its pods.
    pub node_ips: Vec<IpAddr>,
    /// Where the agent keeps what belongs to the node: `<data dir>/node`.
    pub node_dir: PathBuf,
    /// The root of container logs: `/var/log`, with `pods/` and `containers/` below.
    pub log_root: PathBuf,
    /// The address of the HTTPS server; Kubernetes expects port 10250.
    pub listen: SocketAddr,
    /// The addresses of the cluster's DNS.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's DNS domain: `cluster.local`.
    pub cluster_domain: String,
    /// Where `dnsPolicy: Default` takes its servers from: `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// The cluster's pod addresses, which are not masqueraded.
    pub cluster_cidr: Option<ipnet::IpNet>,
    /// Certificate and key of the HTTPS server.
    pub serving: Identity,
    /// The certificate authority (PEM) of client certificates, the API server's first of all.
    pub client_ca: String,
    /// The user name (certificate CN) of the API server, which may use every endpoint without a `SubjectAccessReview`.
    pub api_server_user: String,
    /// Whether stopping the agent also stops and removes its pods.
    pub kill_pods_on_exit: bool,
    /// The most pods the node takes.
    pub max_pods: u32,
    /// The most processes and threads of one pod (`podPidsLimit`); `None` for no limit, as in Kubernetes.
    pub pod_pids_limit: Option<u32>,
    /// How often the Lease is renewed; it lasts four times as long.
    pub lease_interval: Duration,
    /// How often the Node's status is written though nothing changed.
    pub status_interval: Duration,
}

impl KubeletConfig {
    /// The defaults of Kubernetes for a node of this name and address.
    pub fn new(
        node_name: String,
        node_ip: IpAddr,
        node_dir: PathBuf,
        serving: Identity,
        client_ca: String,
    ) -> Self {
        Self {
            node_name,
            node_ips: vec![node_ip],
            node_dir,
            log_root: PathBuf::from("/var/log"),
            listen: SocketAddr::from(([0, 0, 0, 0], 10250)),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            cluster_cidr: None,
            serving,
            client_ca,
            api_server_user: "kube-apiserver-kubelet-client".to_owned(),
            kill_pods_on_exit: false,
            max_pods: 110,
            pod_pids_limit: None,
            lease_interval: Duration::from_secs(10),
            status_interval: Duration::from_secs(300),
        }
    }

    /// The directory of one pod.
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.node_dir.join("pods").join(uid)
    }

    /// The directory of one pod's logs.
    pub(crate) fn log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.log_root
            .join("pods")
            .join(format!("{namespace}_{name}_{uid}"))
    }
}
