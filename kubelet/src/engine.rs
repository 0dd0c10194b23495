//! Knarr's own engine as the agent's runtime.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;
use knarr_engine::types::{
    ContainerConfig, ContainerId, ContainerStatus, Event, ExecOutput, ImageStatus, LinuxResources,
    RegistryAuth, SandboxConfig, SandboxId, SandboxStatus, Stats, TerminalSize,
};
use knarr_engine::{Engine, EngineError, ExecRequest, NetworkConfig};
use tokio::sync::broadcast;

use crate::runtime::{
    PodStream, Reader, Runtime, RuntimeError, Session, SessionControl, StreamRequest, Writer, chain,
};

/// The engine, and what it needs for the node's network besides the pod addresses.
pub(crate) struct EngineRuntime {
    pub(crate) engine: Engine,
    pub(crate) cluster_cidr: Option<IpNet>,
    /// Where the network keeps its records.
    pub(crate) network_dir: PathBuf,
}

fn failed(error: EngineError) -> RuntimeError {
    match &error {
        EngineError::NotFound { what, id } => RuntimeError::NotFound {
            what: format!("{what} {id}"),
        },
        EngineError::Timeout { .. } => RuntimeError::Timeout,
        _ => RuntimeError::Failed {
            message: chain(&error),
        },
    }
}

fn request(request: StreamRequest) -> ExecRequest {
    let StreamRequest {
        command,
        tty,
        stdin,
        stdout,
        stderr,
    } = request;
    ExecRequest {
        command,
        tty,
        stdin,
        stdout,
        stderr,
    }
}

fn session(mut session: knarr_engine::Session) -> Session {
    Session {
        stdin: session.stdin.take().map(|s| Box::new(s) as Writer),
        stdout: session.stdout.take().map(|s| Box::new(s) as Reader),
        stderr: session.stderr.take().map(|s| Box::new(s) as Reader),
        control: Box::new(EngineSession(session)),
    }
}

struct EngineSession(knarr_engine::Session);

#[async_trait]
impl SessionControl for EngineSession {
    async fn resize(&mut self, size: TerminalSize) -> Result<(), RuntimeError> {
        self.0.resize(size).await.map_err(failed)
    }

    async fn wait(&mut self) -> Result<i32, RuntimeError> {
        self.0.wait().await.map_err(failed)
    }
}

#[async_trait]
impl Runtime for EngineRuntime {
    async fn configure_network(&self, pod_cidr: IpNet) -> Result<(), RuntimeError> {
        let config = NetworkConfig {
            pod_cidr,
            cluster_cidr: self.cluster_cidr.unwrap_or(pod_cidr),
            bridge: "knarr0".to_owned(),
            state_dir: self.network_dir.clone(),
            mtu: None,
        };
        self.engine.configure_network(config).await.map_err(failed)
    }

    async fn run_sandbox(&self, config: SandboxConfig) -> Result<SandboxId, RuntimeError> {
        self.engine.run_sandbox(config).await.map_err(failed)
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        self.engine.stop_sandbox(id).await.map_err(failed)
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        self.engine.remove_sandbox(id).await.map_err(failed)
    }

    async fn sandbox_status(&self, id: &SandboxId) -> Result<SandboxStatus, RuntimeError> {
        self.engine.sandbox_status(id).await.map_err(failed)
    }

    async fn list_sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        Ok(self.engine.list_sandboxes().await)
    }

    async fn create_container(
        &self,
        sandbox: &SandboxId,
        config: ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        self.engine
            .create_container(sandbox, config)
            .await
            .map_err(failed)
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.engine.start_container(id).await.map_err(failed)
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        self.engine.stop_container(id, grace).await.map_err(failed)
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.engine.remove_container(id).await.map_err(failed)
    }

    async fn container_status(&self, id: &ContainerId) -> Result<ContainerStatus, RuntimeError> {
        self.engine.container_status(id).await.map_err(failed)
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        Ok(self.engine.list_containers().await)
    }

    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, RuntimeError> {
        self.engine
            .exec_sync(id, command, timeout)
            .await
            .map_err(failed)
    }

    async fn exec(&self, id: &ContainerId, wanted: StreamRequest) -> Result<Session, RuntimeError> {
        self.engine
            .exec(id, request(wanted))
            .await
            .map(session)
            .map_err(failed)
    }

    async fn attach(
        &self,
        id: &ContainerId,
        wanted: StreamRequest,
    ) -> Result<Session, RuntimeError> {
        self.engine
            .attach(id, request(wanted))
            .await
            .map(session)
            .map_err(failed)
    }

    async fn port_forward(&self, id: &SandboxId, port: u16) -> Result<PodStream, RuntimeError> {
        self.engine.port_forward(id, port).await.map_err(failed)
    }

    async fn container_stats(&self, id: &ContainerId) -> Result<Stats, RuntimeError> {
        self.engine.container_stats(id).await.map_err(failed)
    }

    async fn sandbox_stats(&self, id: &SandboxId) -> Result<Stats, RuntimeError> {
        self.engine.sandbox_stats(id).await.map_err(failed)
    }

    async fn set_cgroup(&self, path: &str, resources: LinuxResources) -> Result<(), RuntimeError> {
        self.engine
            .set_cgroup(path, resources)
            .await
            .map_err(failed)
    }

    async fn remove_cgroup(&self, path: &str) -> Result<(), RuntimeError> {
        self.engine.remove_cgroup(path).await.map_err(failed)
    }

    async fn pull_image(
        &self,
        reference: &str,
        credentials: Vec<RegistryAuth>,
    ) -> Result<ImageStatus, RuntimeError> {
        self.engine
            .pull_image(reference, credentials)
            .await
            .map_err(failed)
    }

    async fn image_status(&self, reference: &str) -> Result<Option<ImageStatus>, RuntimeError> {
        self.engine.image_status(reference).await.map_err(failed)
    }

    async fn list_images(&self) -> Result<Vec<ImageStatus>, RuntimeError> {
        self.engine.list_images().await.map_err(failed)
    }

    async fn remove_image(&self, id: &str) -> Result<(), RuntimeError> {
        self.engine.remove_image(id).await.map_err(failed)
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.engine.events()
    }
}
