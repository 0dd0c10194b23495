//! What every controller is given.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::cache::Caches;
use crate::config::Config;
use crate::events::Recorder;

/// The client, the caches, the recorder, the settings and the stop token.
#[derive(Clone)]
pub(crate) struct Context {
    pub client: Client,
    pub caches: Caches,
    pub recorder: Recorder,
    pub config: Arc<Config>,
    pub stop: CancellationToken,
}

/// A reference to an object in the namespace of another, for events.
pub(crate) fn cluster_reference(api_version: &str, kind: &str, name: &str, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some(api_version.to_owned()),
        kind: Some(kind.to_owned()),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}
