//! What every namespace has from the start: the service account `default` and the cluster's CA as a configuration map.

use std::sync::Arc;

use kube::Client;
use serde_json::json;

use crate::api;
use crate::cache::Key;
use crate::context::Context;
use crate::model::{self, ConfigMap, ServiceAccount, Written};
use crate::queue::{Next, Queue};
use crate::supervise::Loop;

/// The service account that pods get if they name none.
const ACCOUNT: &str = "default";
/// The configuration map that pods get projected beside their token.
const ROOT_CA: &str = "kube-root-ca.crt";
const ROOT_CA_FILE: &str = "ca.crt";

/// What failed.
#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error("create service account {ACCOUNT} in {namespace}")]
    Account {
        namespace: Arc<str>,
        source: kube::Error,
    },
    #[error("write configuration map {ROOT_CA} in {namespace}")]
    RootCa {
        namespace: Arc<str>,
        source: kube::Error,
    },
}

/// Registers for changes; what the returned function makes works until stopped.
///
/// `publisher` writes the certificate: that is a controller of its own in Kubernetes, with rights of its own.
pub(crate) fn start(ctx: Context, publisher: Client) -> Loop {
    let queue = Arc::new(Queue::default());
    let keys = queue.clone();
    ctx.caches.namespaces.on_change(move |change| {
        if let Some(namespace) = change.new {
            keys.add(Key::of(&namespace.metadata));
        }
    });
    let keys = queue.clone();
    ctx.caches.service_accounts.on_change(move |change| {
        if let (Some(account), None) = (change.old, change.new) {
            keys.add(Key::new("", model::namespace(&account.metadata)));
        }
    });
    let keys = queue.clone();
    ctx.caches.root_cas.on_change(move |change| {
        if let Some(map) = change.versions().last() {
            keys.add(Key::new("", model::namespace(&map.metadata)));
        }
    });
    let work = ctx.clone();
    queue.worker("namespace-defaults", 8, ctx.stop.clone(), move |key| {
        let (ctx, publisher) = (work.clone(), publisher.clone());
        async move { sync(&ctx, &publisher, &key).await }
    })
}

async fn sync(ctx: &Context, publisher: &Client, key: &Key) -> Result<Next, SyncError> {
    let living = ctx
        .caches
        .namespaces
        .get(key)
        .is_some_and(|namespace| !model::is_deleting(&namespace.metadata));
    if !living {
        return Ok(Next::OnChange);
    }
    let (account, root_ca) =
        tokio::join!(account(ctx, &key.name), root_ca(ctx, publisher, &key.name));
    account.map_err(|source| SyncError::Account {
        namespace: key.name.clone(),
        source,
    })?;
    root_ca.map_err(|source| SyncError::RootCa {
        namespace: key.name.clone(),
        source,
    })?;
    Ok(Next::OnChange)
}

async fn account(ctx: &Context, namespace: &str) -> Result<(), kube::Error> {
    if ctx
        .caches
        .service_accounts
        .get(&Key::new(namespace, ACCOUNT))
        .is_some()
    {
        return Ok(());
    }
    let body = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": namespace}});
    done(api::create::<ServiceAccount, Written>(&ctx.client, namespace, &body).await)
}

async fn root_ca(ctx: &Context, publisher: &Client, namespace: &str) -> Result<(), kube::Error> {
    let pem = &ctx.config.ca_certificate_pem;
    match ctx.caches.root_cas.get(&Key::new(namespace, ROOT_CA)) {
        Some(map) if map.data.len() == 1 && map.data.get(ROOT_CA_FILE) == Some(pem) => Ok(()),
        Some(map) => {
            // Whatever else was put there goes: the map is nobody's but ours.
            let mut data: serde_json::Map<_, _> = map
                .data
                .keys()
                .map(|file| (file.clone(), json!(null)))
                .collect();
            data.insert(ROOT_CA_FILE.into(), json!(pem));
            done(
                api::patch::<ConfigMap>(publisher, namespace, ROOT_CA, &json!({"data": data}))
                    .await,
            )
        }
        None => {
            let body = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": ROOT_CA, "namespace": namespace, "annotations": {
                    "kubernetes.io/description": "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.",
                }},
                "data": {ROOT_CA_FILE: pem},
            });
            done(api::create::<ConfigMap, Written>(publisher, namespace, &body).await)
        }
    }
}

/// That it is there already, or that the namespace is going, is as good as done.
fn done(result: Result<Written, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(error)
            if api::is_already_exists(&error)
                || api::is_not_found(&error)
                || api::is_namespace_terminating(&error) =>
        {
            Ok(())
        }
        other => other.map(|_| ()),
    }
}
