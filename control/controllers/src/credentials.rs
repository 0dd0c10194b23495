//! As whom the controllers ask (kube-controller-manager's `--use-service-account-credentials`).

use std::sync::Arc;

use kube::Client;

/// The clients of the controllers: what one of them may do, the others may not.
#[derive(Clone)]
pub struct Credentials {
    manager: Client,
    controller: Arc<dyn Fn(&str) -> Client + Send + Sync>,
}

impl Credentials {
    /// `manager` acts as `system:kube-controller-manager`; `controller` makes a client that acts as the service account of this
    /// name in `kube-system`, such as `deployment-controller`.
    pub fn new(
        manager: Client,
        controller: impl Fn(&str) -> Client + Send + Sync + 'static,
    ) -> Self {
        Self {
            manager,
            controller: Arc::new(controller),
        }
    }

    /// Reads for all of them, and writes events.
    pub(crate) fn manager(&self) -> &Client {
        &self.manager
    }

    /// Writes for one of them.
    pub(crate) fn controller(&self, account: &str) -> Client {
        (self.controller)(account)
    }
}
