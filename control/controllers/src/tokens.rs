//! Bootstrap tokens that have expired are removed.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use serde::Deserialize;

use crate::api::{self, Delete};
use crate::cache::{Cache, Cached, Key, follow};
use crate::context::Context;
use crate::model::resource;
use crate::queue::{Next, Queue};
use crate::supervise::Loop;

/// The type of the secrets that are bootstrap tokens, and where they live.
const TOKEN: &str = "bootstrap.kubernetes.io/token";
const NAMESPACE: &str = "kube-system";

/// A secret, of which only a token's end is kept.
#[derive(Clone, Debug, Default, Deserialize)]
struct Secret {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(rename = "type", default)]
    type_: String,
    #[serde(default)]
    data: Data,
}
resource!(
    Secret,
    "",
    "v1",
    "Secret",
    "secrets",
    NamespaceResourceScope
);

#[derive(Clone, Debug, Default, Deserialize)]
struct Data {
    expiration: Option<ByteString>,
}

impl Cached for Secret {
    fn trim(&mut self) {
        self.metadata.managed_fields = None;
        self.metadata.annotations = None;
    }
}

impl Secret {
    /// When the token ends; `None` for one without an end. A text that is no time has ended: nobody can have meant it to last.
    fn end(&self) -> Option<Timestamp> {
        let text = self.data.expiration.as_ref()?;
        Some(
            std::str::from_utf8(&text.0)
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(Timestamp::MIN),
        )
    }
}

/// What failed.
#[derive(Debug, thiserror::Error)]
#[error("delete expired token {key}")]
struct DeleteError {
    key: Key,
    source: kube::Error,
}

/// Registers for changes; what the returned function makes follows the tokens and works until stopped.
pub(crate) fn start(ctx: Context) -> Loop {
    let tokens: Arc<Cache<Secret>> = Arc::default();
    let queue = Arc::new(Queue::default());
    let keys = queue.clone();
    tokens.on_change(move |change| {
        if let Some(secret) = change.new.filter(|secret| secret.type_ == TOKEN) {
            keys.add(Key::of(&secret.metadata));
        }
    });
    let (client, known) = (ctx.client.clone(), tokens.clone());
    let work = queue.worker("token-cleaner", 1, ctx.stop.clone(), move |key| {
        let (client, tokens) = (client.clone(), known.clone());
        async move {
            let Some(secret) = tokens.get(&key) else {
                return Ok(Next::OnChange);
            };
            let Some(end) = secret.end() else {
                return Ok(Next::OnChange);
            };
            let left = Duration::try_from(end.duration_since(Timestamp::now())).unwrap_or_default();
            if !left.is_zero() {
                return Ok(Next::After(left));
            }
            match api::delete::<Secret>(&client, &secret.metadata, Delete::default()).await {
                Ok(()) => Ok(Next::OnChange),
                Err(source) => Err(DeleteError { key, source }),
            }
        }
    });
    Box::new(move || {
        let api = Api::namespaced(ctx.client.clone(), NAMESPACE);
        let watch = follow(api, None, tokens.clone(), ctx.stop.clone());
        let work = work();
        async move { ((), ()) = tokio::join!(watch, work) }.boxed()
    })
}
