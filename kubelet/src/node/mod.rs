//! The Node object: registration, status, Lease.

pub(crate) mod info;
pub(crate) mod status;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::json;

use crate::config::KubeletConfig;
use crate::ctx::Ctx;
use crate::runtime::chain;

const LEASE_NAMESPACE: &str = "kube-node-lease";
const RETRY: Duration = Duration::from_millis(200);
/// How often the machine's state is looked at, for conditions that change.
const CHECK: Duration = Duration::from_secs(10);

/// The labels that every node has.
fn labels(config: &KubeletConfig) -> BTreeMap<String, String> {
    let arch = info::architecture();
    [
        ("beta.kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .collect()
}

/// Registers the node, or brings its labels and status up to date; tries until it succeeds. Returns its UID.
pub(crate) async fn register(ctx: &Ctx) -> String {
    loop {
        match try_register(ctx).await {
            Ok(uid) => return uid,
            Err(error) => {
                tracing::warn!(error = chain(&error), "register the node");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn try_register(ctx: &Ctx) -> Result<String, kube::Error> {
    let api: Api<Node> = Api::all(ctx.client.clone());
    let name = &ctx.config.node_name;
    let status = status::build(ctx, None, &[]).await;
    let node = Node {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some(labels(&ctx.config)),
            annotations: Some(BTreeMap::from([(
                "volumes.kubernetes.io/controller-managed-attach-detach".to_owned(),
                "true".to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec::default()),
        status: Some(status.clone()),
    };
    let known = match api.create(&PostParams::default(), &node).await {
        Ok(created) => created,
        Err(kube::Error::Api(answer)) if answer.code == 409 => {
            let patch = Patch::Merge(json!({"metadata": {"labels": labels(&ctx.config)}}));
            api.patch(name, &PatchParams::default(), &patch).await?
        }
        Err(error) => return Err(error),
    };
    // What a server does not take at creation, and what an earlier life of the node left, is written now.
    let merged = status::build(ctx, known.status.as_ref(), &[]).await;
    write_status(&ctx.client, name, known.status.as_ref(), &merged).await?;
    Ok(known.metadata.uid.unwrap_or_default())
}

async fn write_status(
    client: &Client,
    name: &str,
    previous: Option<&NodeStatus>,
    status: &NodeStatus,
) -> Result<(), kube::Error> {
    let api: Api<Node> = Api::all(client.clone());
    let mut value = serde_json::to_value(status).map_err(kube::Error::SerdeError)?;
    // Merged by type otherwise, so that an address of an earlier life would stay.
    let moved = previous.is_some_and(|old| old.addresses != status.addresses);
    if let Some(addresses) = value
        .get_mut("addresses")
        .and_then(|a| a.as_array_mut())
        .filter(|_| moved)
    {
        addresses.push(json!({"$patch": "replace"}));
    }
    let patch = Patch::Strategic(json!({"status": value}));
    api.patch_status(name, &PatchParams::default(), &patch)
        .await
        .map(|_| ())
}

/// Waits until the controllers gave the node its pod addresses.
pub(crate) async fn pod_cidr(client: Client, name: &str) -> ipnet::IpNet {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let stream = watcher(Api::<Node>::all(client), config).default_backoff();
    let mut stream = std::pin::pin!(stream);
    loop {
        match stream.next().await {
            Some(Ok(watcher::Event::Apply(node) | watcher::Event::InitApply(node))) => {
                let cidr = node.spec.and_then(|s| s.pod_cidr).filter(|c| !c.is_empty());
                match cidr.map(|c| c.parse()) {
                    Some(Ok(cidr)) => return cidr,
                    Some(Err(error)) => {
                        tracing::error!(%error, "the node's podCIDR cannot be read")
                    }
                    None => {}
                }
            }
            Some(Err(error)) => {
                tracing::warn!(error = chain(&error), "watch of the node interrupted")
            }
            Some(Ok(_)) => {}
            None => tokio::time::sleep(RETRY).await,
        }
    }
}

/// Keeps the node's status current, here and at the API server: a node that could not be heard of for a while gets other
/// conditions there, and says at its return that it is well.
pub(crate) async fn report(ctx: Arc<Ctx>, network_ready: tokio::sync::watch::Receiver<bool>) {
    let mut written: Option<NodeStatus> = None;
    let mut overruled = false;
    let config =
        watcher::Config::default().fields(&format!("metadata.name={}", ctx.config.node_name));
    let own = watcher(Api::<Node>::all(ctx.client.clone()), config).default_backoff();
    let mut own = std::pin::pin!(own);
    let mut written_at = tokio::time::Instant::now();
    let mut network_ready = network_ready;
    loop {
        let mut problems = Vec::new();
        if !*network_ready.borrow_and_update() {
            problems.push(
                "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:the node has no podCIDR yet"
                    .to_owned(),
            );
        }
        let status = status::build(&ctx, written.as_ref(), &problems).await;
        let due = written_at.elapsed() >= ctx.config.status_interval;
        if due
            || overruled
            || written
                .as_ref()
                .is_none_or(|old| status::differs(old, &status))
        {
            match write_status(
                &ctx.client,
                &ctx.config.node_name,
                written.as_ref(),
                &status,
            )
            .await
            {
                Ok(()) => {
                    written = Some(status);
                    written_at = tokio::time::Instant::now();
                    overruled = false;
                }
                Err(kube::Error::Api(answer)) if answer.code == 404 => {
                    // Somebody deleted the node; it comes back.
                    let _uid = register(&ctx).await;
                    written = None;
                    continue;
                }
                Err(error) => tracing::warn!(error = chain(&error), "write the node's status"),
            }
        }
        // Only wake-ups: nothing is lost if one of them is dropped.
        tokio::select! {
            () = tokio::time::sleep(CHECK) => {}
            event = own.next() => match event {
                Some(Ok(watcher::Event::Apply(node) | watcher::Event::InitApply(node))) => {
                    overruled = written.as_ref().is_some_and(|written| status::is_overruled(written, &node));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => tracing::debug!(error = chain(&error), "watch of the node interrupted"),
                None => tokio::time::sleep(CHECK).await,
            },
            result = network_ready.changed() => if result.is_err() { tokio::time::sleep(CHECK).await },
        }
    }
}

/// Renews the node's Lease.
pub(crate) async fn lease(ctx: Arc<Ctx>, node_uid: String) {
    let api: Api<Lease> = Api::namespaced(ctx.client.clone(), LEASE_NAMESPACE);
    let name = ctx.config.node_name.clone();
    let seconds = i32::try_from(ctx.config.lease_interval.as_secs() * 4).unwrap_or(40);
    loop {
        let renew = Patch::Merge(json!({"spec": {
            "holderIdentity": name,
            "leaseDurationSeconds": seconds,
            "renewTime": MicroTime(Timestamp::now()),
        }}));
        let mut wait = ctx.config.lease_interval;
        match api.patch(&name, &PatchParams::default(), &renew).await {
            Ok(_) => {}
            Err(kube::Error::Api(answer)) if answer.code == 404 => {
                let lease = new_lease(&name, &node_uid, seconds);
                if let Err(error) = api.create(&PostParams::default(), &lease).await {
                    tracing::warn!(error = chain(&error), "create the node's lease");
                    wait = RETRY;
                }
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "renew the node's lease");
                wait = RETRY.max(ctx.config.lease_interval / 10);
            }
        }
        tokio::time::sleep(wait).await;
    }
}

fn new_lease(name: &str, node_uid: &str, seconds: i32) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(LEASE_NAMESPACE.to_owned()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: name.to_owned(),
                uid: node_uid.to_owned(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.to_owned()),
            lease_duration_seconds: Some(seconds),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }),
    }
}

/// The node's addresses as the API lists them.
pub(crate) fn addresses(
    name: &str,
    ips: &[IpAddr],
) -> Vec<k8s_openapi::api::core::v1::NodeAddress> {
    use k8s_openapi::api::core::v1::NodeAddress;
    let internal = ips.iter().map(|ip| NodeAddress {
        address: ip.to_string(),
        type_: "InternalIP".to_owned(),
    });
    let hostname = NodeAddress {
        address: name.to_owned(),
        type_: "Hostname".to_owned(),
    };
    internal.chain([hostname]).collect()
}
