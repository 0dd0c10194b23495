//! Whether this node can take a pod that is assigned to it: a pure function.
//!
//! The scheduler has asked the same, but a pod may name its node itself, and the node may have changed since.
//! Source: kubernetes, pkg/kubelet/lifecycle/predicate.go, and pkg/scheduler, `AdmissionCheck`.

mod affinity;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerPort, Node, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::memory::Rejection;
use crate::pod;
use crate::resources::{self, millis, units};

const OS_LABEL: &str = "kubernetes.io/os";
const OS: &str = "linux";

/// Why the node cannot take `pod` beside the `others`, if it cannot.
pub(crate) fn check(node: &Node, others: &[&Pod], pod: &Pod) -> Result<(), Rejection> {
    operating_system(pod)?;
    resources_fit(node, others, pod)?;
    if !affinity::matches(node, pod) {
        let description = "node(s) didn't match Pod's node affinity/selector";
        return Err(predicate("NodeAffinity", description));
    }
    if ports_conflict(others, pod) {
        let description = "node(s) didn't have free ports for the requested pod ports";
        return Err(predicate("NodePorts", description));
    }
    if untolerated(node, pod) {
        let description = "node(s) had taints that the pod didn't tolerate";
        return Err(predicate("TaintToleration", description));
    }
    Ok(())
}

fn predicate(name: &str, description: &str) -> Rejection {
    Rejection {
        reason: name.to_owned(),
        message: format!("Predicate {name} failed: {description}"),
    }
}

fn operating_system(pod: &Pod) -> Result<(), Rejection> {
    let refuse = |reason: &str, message: &str| {
        Err(Rejection {
            reason: reason.to_owned(),
            message: message.to_owned(),
        })
    };
    let label = pod.metadata.labels.as_ref().and_then(|l| l.get(OS_LABEL));
    if label.is_some_and(|os| os != OS) {
        return refuse(
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        );
    }
    if pod::spec(pod).os.as_ref().is_some_and(|os| os.name != OS) {
        return refuse(
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        );
    }
    Ok(())
}

fn resources_fit(node: &Node, others: &[&Pod], pod: &Pod) -> Result<(), Rejection> {
    let none = BTreeMap::new();
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
    let allocatable = allocatable.unwrap_or(&none);
    let capacity = |name: &str, read: fn(&Quantity) -> i64| allocatable.get(name).map_or(0, read);
    let too_little = |name: &str, requested: i64, used: i64, capacity: i64| {
        Err(Rejection {
            reason: format!("OutOf{name}"),
            message: format!(
                "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
            ),
        })
    };
    let count = i64::try_from(others.len()).unwrap_or(i64::MAX);
    let places = capacity("pods", units);
    if count >= places {
        return too_little("pods", 1, count, places);
    }
    let first = ["cpu", "memory", "ephemeral-storage"];
    let mut rest = resources::requested(pod);
    rest.retain(|name| !first.contains(name));
    for name in first.into_iter().chain(rest) {
        // What the node knows nothing of is a matter of the cluster, or of a driver.
        if is_extended(name) && !allocatable.contains_key(name) {
            continue;
        }
        let read = if name == "cpu" { millis } else { units };
        let requested = resources::pod_request(pod, name);
        if requested == 0 {
            continue;
        }
        let used = others
            .iter()
            .map(|other| resources::pod_request(other, name))
            .fold(0, i64::saturating_add);
        let capacity = capacity(name, read);
        if requested > capacity.saturating_sub(used) {
            return too_little(name, requested, used, capacity);
        }
    }
    Ok(())
}

/// Whether a resource is none of Kubernetes' own. Source: pkg/apis/core/v1/helper, `IsExtendedResourceName`.
fn is_extended(name: &str) -> bool {
    name.split_once('/').is_some_and(|(domain, _)| {
        !(domain == "kubernetes.io"
            || domain.ends_with(".kubernetes.io")
            || domain.starts_with("requests."))
    })
}

/// One port of the host: its address, protocol and number.
type HostPort<'a> = (&'a str, &'a str, i32);

fn host_ports(pod: &Pod) -> impl Iterator<Item = HostPort<'_>> {
    const ANY: &str = "0.0.0.0";
    let spec = pod::spec(pod);
    let host_network = spec.host_network == Some(true);
    // Init containers that end give their ports back; sidecars keep them.
    let sidecars = pod::init_containers(spec)
        .filter(|(_, kind)| *kind == pod::Kind::Sidecar)
        .map(|(container, _)| container);
    let of_port = move |port: &'_ ContainerPort| {
        let own = host_network.then_some(port.container_port);
        port.host_port.or(own).filter(|number| *number > 0)
    };
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(move |port| {
            let address = port.host_ip.as_deref().filter(|ip| !ip.is_empty());
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            Some((address.unwrap_or(ANY), protocol, of_port(port)?))
        })
}

fn ports_conflict(others: &[&Pod], pod: &Pod) -> bool {
    let is_any = |address: &str| matches!(address, "0.0.0.0" | "::");
    let same = |a: HostPort<'_>, b: HostPort<'_>| {
        (a.1, a.2) == (b.1, b.2) && (a.0 == b.0 || is_any(a.0) || is_any(b.0))
    };
    let taken: Vec<HostPort<'_>> = others.iter().flat_map(|other| host_ports(other)).collect();
    host_ports(pod).any(|wanted| taken.iter().any(|other| same(wanted, *other)))
}

/// Whether a taint of the node evicts the pod at once.
fn untolerated(node: &Node, pod: &Pod) -> bool {
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    let mut evicting = taints.filter(|taint| taint.effect == "NoExecute");
    evicting.any(|taint| {
        let mut tolerations = pod::spec(pod).tolerations.iter().flatten();
        !tolerations.any(|toleration| tolerates(toleration, taint))
    })
}

/// Source: kubernetes, core/v1/toleration.go, `ToleratesTaint`.
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let given = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
    if given(&toleration.effect).is_some_and(|effect| effect != taint.effect)
        || given(&toleration.key).is_some_and(|key| key != taint.key)
    {
        return false;
    }
    let value = taint.value.as_deref().unwrap_or_default();
    let wanted = toleration.value.as_deref().unwrap_or_default();
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => wanted == value,
        "Exists" => true,
        operator @ ("Lt" | "Gt") => match (value.parse::<i64>(), wanted.parse::<i64>()) {
            (Ok(value), Ok(wanted)) if operator == "Lt" => value < wanted,
            (Ok(value), Ok(wanted)) => value > wanted,
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests;
