//! What one pod, service or claim uses, in the names that quotas bound.

use jiff::{SignedDuration, Timestamp};
use knarr_quantity::Quantity;
use serde_json::Value;

use crate::registry::admission::amounts::{self, Amounts, Basis, List};
use crate::registry::meta;
use crate::strategy::validation::items;

/// Between the name of a storage class and the name of what is bounded in it.
pub(super) const OF_CLASS: &str = ".storageclass.storage.k8s.io/";

/// Whether a resource is one of devices, named after its maker.
pub(super) fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.")
}

/// What requests and limits are to quotas.
pub(super) fn compute(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut used = Amounts::from([("pods".to_owned(), Quantity::from(1))]);
    for (name, amount) in requests {
        let native = matches!(&**name, "cpu" | "memory" | "ephemeral-storage")
            || name.starts_with("hugepages-");
        if native {
            used.insert(name.clone(), *amount);
        }
        if native || is_extended(name) {
            used.insert(format!("requests.{name}"), *amount);
        }
    }
    for (name, amount) in limits {
        if matches!(&**name, "cpu" | "memory" | "ephemeral-storage") {
            used.insert(format!("limits.{name}"), *amount);
        }
    }
    used
}

/// A pod that has ended is counted, but uses nothing any more; nor does one that should long have gone.
pub(super) fn of_pod(pod: &Value, now: Timestamp) -> Amounts {
    let counted = Amounts::from([("count/pods".to_owned(), Quantity::from(1))]);
    let ended = matches!(
        pod["status"]["phase"].as_str(),
        Some("Failed" | "Succeeded")
    );
    let metadata = &pod["metadata"];
    let grace = metadata["deletionGracePeriodSeconds"].as_i64();
    let deleted: Option<Timestamp> = meta::text(pod, "deletionTimestamp").parse().ok();
    let overdue = deleted
        .zip(grace)
        .and_then(|(deleted, grace)| deleted.checked_add(SignedDuration::from_secs(grace)).ok())
        .is_some_and(|end| now > end);
    if ended || overdue {
        return counted;
    }
    let [requests, limits] = [List::Requests, List::Limits].map(|list| {
        let mut total = amounts::of_pod(pod, list, Basis::Status);
        amounts::add_overhead(pod, list, &mut total);
        total
    });
    let mut used = compute(&requests, &limits);
    used.extend(counted);
    used
}

/// Node ports need not be given yet: it counts how many there will be.
pub(super) fn of_service(service: &Value) -> Amounts {
    let spec = &service["spec"];
    let kind = spec["type"].as_str().unwrap_or_default();
    let ports = items(&spec["ports"]).count();
    let explicit = items(&spec["ports"])
        .filter(|(_, port)| port["nodePort"].as_i64().unwrap_or(0) != 0)
        .count();
    let node_ports = match kind {
        "LoadBalancer" if spec["allocateLoadBalancerNodePorts"] == false => explicit,
        "NodePort" | "LoadBalancer" => ports,
        _ => 0,
    };
    let number = |name: &str, number: usize| {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        (name.to_owned(), Quantity::from(number))
    };
    Amounts::from([
        number("count/services", 1),
        number("services", 1),
        number("services.nodeports", node_ports),
        number("services.loadbalancers", (kind == "LoadBalancer").into()),
    ])
}

pub(super) fn of_claim(claim: &Value) -> Amounts {
    let one = Quantity::from(1);
    let mut used = Amounts::from([
        ("count/persistentvolumeclaims".to_owned(), one),
        ("persistentvolumeclaims".to_owned(), one),
    ]);
    let class = class_of(claim);
    if !class.is_empty() {
        used.insert(format!("{class}{OF_CLASS}persistentvolumeclaims"), one);
    }
    let storage = |list: &Value| amounts::read(list).remove("storage").map(whole_bytes);
    let wanted = storage(&claim["spec"]["resources"]["requests"]);
    let allocated = storage(&claim["status"]["allocatedResources"]);
    if let Some(wanted) = wanted {
        let size = allocated
            .filter(|allocated| allocated.nano() > wanted.nano())
            .unwrap_or(wanted);
        used.insert("requests.storage".to_owned(), size);
        if !class.is_empty() {
            used.insert(format!("{class}{OF_CLASS}requests.storage"), size);
        }
    }
    used
}

fn whole_bytes(amount: Quantity) -> Quantity {
    let bytes = Quantity::from(amount.units());
    if bytes.nano() == amount.nano() {
        amount
    } else {
        bytes
    }
}

/// The storage class of a claim; empty for none. Its annotation is older than the field, and comes first.
pub fn class_of(claim: &Value) -> &str {
    let annotation = &claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"];
    let class = annotation
        .as_str()
        .or_else(|| claim["spec"]["storageClassName"].as_str());
    class.unwrap_or_default()
}

/// The attributes classes that a claim has, had, or is about to have.
pub(super) fn attributes_classes(claim: &Value) -> impl Iterator<Item = &str> {
    let status = &claim["status"];
    [
        &claim["spec"]["volumeAttributesClassName"],
        &status["currentVolumeAttributesClassName"],
        &status["modifyVolumeStatus"]["targetVolumeAttributesClassName"],
    ]
    .into_iter()
    .filter_map(Value::as_str)
    .filter(|name| !name.is_empty())
}
