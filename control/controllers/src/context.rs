//! What every controller is given.

use std::sync::Arc;

use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::cache::Caches;
use crate::clock::Clock;
use crate::config::Config;
use crate::events::Recorder;
use crate::supervise::Health;

/// The client, the caches, the recorder, the settings, how the loops do, the clock and the stop token.
#[derive(Clone)]
pub(crate) struct Context {
    pub client: Client,
    pub caches: Caches,
    pub recorder: Recorder,
    pub config: Arc<Config>,
    pub health: Health,
    pub clock: Arc<Clock>,
    pub stop: CancellationToken,
}
