//! The node agent: runs the pods that the API assigns to its node, on knarr's own engine.
//!
//! ```text
//!   API ──watch──> manager ──one task per pod──> worker:  observe ─> plan ─> act ─> publish status
//!                                                  ^            (pure)        │
//!   engine events, probes, changed ConfigMaps ─────┘                          └──> engine, volumes, hooks
//!   API server ──HTTPS :10250──> server: logs, exec, attach, port-forward, metrics
//! ```
//!
//! * A pod's task remembers little (`plan` decides from what the engine has), so an agent that starts anew takes over what
//!   runs: the engine's sandboxes carry the pod's UID. Pods that the API no longer has are stopped.
//! * The API object of a pod goes only when its containers, volumes and logs are gone from the node.
//! * At most one status write per pod is under way; only the newest waits.
//!
//! # The node's server
//!
//! The API server calls `https://<node's InternalIP>:<status.daemonEndpoints.kubeletEndpoint.Port>` with its client
//! certificate (CN `kube-apiserver-kubelet-client`, see [`KubeletConfig::api_server_user`]), which may use everything.
//! Anybody else needs a client certificate of the cluster's CA or a bearer token (`TokenReview`), and is asked for by a
//! `SubjectAccessReview` for `nodes/{stats,metrics,log,pods,healthz,configz}`; `nodes/proxy` opens all but the first three.
//!
//! * `GET /containerLogs/<namespace>/<pod>/<container>` with `follow`, `previous`, `timestamps`, `tailLines`,
//!   `sinceSeconds`, `sinceTime`, `limitBytes`, `stream`.
//! * `/exec/<namespace>/<pod>/<container>?command=…` and `/attach/<namespace>/<pod>/<container>` with `input`, `output`,
//!   `error`, `tty` (or `stdin`, `stdout`, `stderr`), upgraded to a WebSocket (`v5.channel.k8s.io`, `v4.channel.k8s.io`) or
//!   to SPDY/3.1.
//! * `/portForward/<namespace>/<pod>`, upgraded to SPDY/3.1 or to a WebSocket that carries it
//!   (`SPDY/3.1+portforward.k8s.io`).
//!
//! Absent on purpose: static pods, eviction, device plugins, volumes that need a driver.
//!
//! A panic costs what it happens in: a job ends as one that failed, a pod's task starts anew, a request is answered with 500.
//!
//! Reading order: [`run()`], `manager`, `admission`, `pod_task`, `worker`, `plan`, `act`, `jobs`, `start`, `done`, `status`, `cleanup`; then `volumes`, `probe`, `server`,
//! `node`, [`bootstrap()`].

mod act;
mod admission;
mod apparmor;
mod bootstrap;
mod cleanup;
mod config;
mod container_status;
mod ctx;
mod done;
mod engine;
mod env;
mod events;
mod existing;
mod gc;
mod go;
mod grpc_check;
mod hooks;
mod http_check;
mod identity;
mod images;
mod jobs;
mod kill;
mod logs;
mod manager;
mod memory;
mod node;
mod objects;
mod panics;
mod plan;
mod pod;
mod pod_task;
mod probe;
mod probes;
mod resources;
mod run;
mod runtime;
mod sandbox;
mod security;
mod server;
mod services;
mod start;
mod status;
mod sysctl;
mod termination;
#[cfg(test)]
mod testing;
mod volumes;
mod worker;
mod writer;

pub use bootstrap::{BootstrapError, Join, Joined, bootstrap};
pub use config::KubeletConfig;
pub use identity::{Identity, IdentityError};
pub use run::{RunError, run};
