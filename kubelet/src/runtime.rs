//! What the agent asks of a container runtime.
//!
//! The methods are those of the engine; the trait keeps the rest of the crate free of how they are done.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use knarr_engine::types::{
    ContainerConfig, ContainerId, ContainerStatus, Event, ExecOutput, ImageStatus, LinuxResources,
    RegistryAuth, SandboxConfig, SandboxId, SandboxStatus, Stats, TerminalSize,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::broadcast;

/// Something that a session writes to.
pub(crate) type Writer = Box<dyn AsyncWrite + Send + Unpin>;
/// Something that a session reads from.
pub(crate) type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// Why the runtime refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RuntimeError {
    /// There is no such thing.
    #[error("{what} not found")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// A command did not end in time and was killed.
    #[error("command timed out")]
    Timeout,
    /// The runtime failed; its message is complete.
    #[error("{message}")]
    Failed {
        /// The error with its causes.
        message: String,
    },
}

/// What an interactive session is to have.
#[derive(Clone, Debug)]
pub(crate) struct StreamRequest {
    pub(crate) command: Vec<String>,
    pub(crate) tty: bool,
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
}

/// A running `exec` or `attach`.
pub(crate) struct Session {
    pub(crate) stdin: Option<Writer>,
    pub(crate) stdout: Option<Reader>,
    pub(crate) stderr: Option<Reader>,
    pub(crate) control: Box<dyn SessionControl>,
}

/// The rest of a session: its terminal and its end.
#[async_trait]
pub(crate) trait SessionControl: Send {
    /// Tells the terminal its size.
    async fn resize(&mut self, size: TerminalSize) -> Result<(), RuntimeError>;
    /// The exit code, once the process ended.
    ///
    /// May be dropped and called again.
    async fn wait(&mut self) -> Result<i32, RuntimeError>;
}

/// A byte stream into a pod's network namespace.
pub(crate) type PodStream = tokio::net::TcpStream;

/// The runtime, as the agent sees it.
#[async_trait]
pub(crate) trait Runtime: Send + Sync + 'static {
    async fn configure_network(&self, pod_cidr: ipnet::IpNet) -> Result<(), RuntimeError>;
    async fn run_sandbox(&self, config: SandboxConfig) -> Result<SandboxId, RuntimeError>;
    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError>;
    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError>;
    async fn sandbox_status(&self, id: &SandboxId) -> Result<SandboxStatus, RuntimeError>;
    async fn list_sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError>;
    async fn create_container(
        &self,
        sandbox: &SandboxId,
        config: ContainerConfig,
    ) -> Result<ContainerId, RuntimeError>;
    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError>;
    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError>;
    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError>;
    async fn container_status(&self, id: &ContainerId) -> Result<ContainerStatus, RuntimeError>;
    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError>;
    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, RuntimeError>;
    async fn exec(&self, id: &ContainerId, request: StreamRequest)
    -> Result<Session, RuntimeError>;
    async fn attach(
        &self,
        id: &ContainerId,
        request: StreamRequest,
    ) -> Result<Session, RuntimeError>;
    async fn port_forward(&self, id: &SandboxId, port: u16) -> Result<PodStream, RuntimeError>;
    async fn container_stats(&self, id: &ContainerId) -> Result<Stats, RuntimeError>;
    async fn sandbox_stats(&self, id: &SandboxId) -> Result<Stats, RuntimeError>;
    async fn set_cgroup(&self, path: &str, resources: LinuxResources) -> Result<(), RuntimeError>;
    async fn remove_cgroup(&self, path: &str) -> Result<(), RuntimeError>;
    async fn pull_image(
        &self,
        reference: &str,
        credentials: Vec<RegistryAuth>,
    ) -> Result<ImageStatus, RuntimeError>;
    async fn image_status(&self, reference: &str) -> Result<Option<ImageStatus>, RuntimeError>;
    async fn list_images(&self) -> Result<Vec<ImageStatus>, RuntimeError>;
    async fn remove_image(&self, id: &str) -> Result<(), RuntimeError>;
    fn events(&self) -> broadcast::Receiver<Event>;
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some libraries repeat the cause in their own message, in their own spelling.
        let plain = cause_text
            .split(" (os error")
            .next()
            .unwrap_or_default()
            .to_lowercase();
        if !text.to_lowercase().contains(&plain) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The primary address first, as Kubernetes lists them.
pub(crate) fn join_ips(ips: &[IpAddr]) -> String {
    ips.iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{what}")]
    struct Failure {
        what: &'static str,
        source: std::io::Error,
    }

    #[test]
    fn causes_are_named_once() {
        let error = |what| Failure {
            what,
            source: std::io::Error::from_raw_os_error(libc::ENOENT),
        };
        assert_eq!(
            chain(&error("open /x")),
            "open /x: No such file or directory (os error 2)"
        );
        assert_eq!(
            chain(&error("exec /x: no such file or directory")),
            "exec /x: no such file or directory"
        );
    }
}
