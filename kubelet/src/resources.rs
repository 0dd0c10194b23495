//! Requests and limits to cgroups.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use knarr_engine::types::LinuxResources;

use crate::pod::{self, Kind};

/// The CFS period that limits are spread over, in microseconds.
const PERIOD_US: i64 = 100_000;
/// The least quota that the kernel takes, in microseconds.
const MIN_QUOTA_US: i64 = 1_000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;

/// The quality of service class of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

/// What the API server wrote, else what the containers' resources say.
pub(crate) fn qos(pod: &Pod) -> Qos {
    match pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) {
        Some("Guaranteed") => Qos::Guaranteed,
        Some("Burstable") => Qos::Burstable,
        Some("BestEffort") => Qos::BestEffort,
        _ => computed_qos(pod),
    }
}

fn computed_qos(pod: &Pod) -> Qos {
    let mut any = false;
    let mut guaranteed = true;
    for (container, kind) in pod::all_containers(pod::spec(pod)) {
        if kind == Kind::Ephemeral {
            continue;
        }
        for resource in ["cpu", "memory"] {
            let request = request(&container, resource);
            let limit = limit(&container, resource);
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

fn lookup<'a>(
    resources: Option<&'a ResourceRequirements>,
    pick: fn(&ResourceRequirements) -> &Option<BTreeMap<String, Quantity>>,
    name: &str,
) -> Option<&'a Quantity> {
    pick(resources?)
        .as_ref()?
        .get(name)
        .filter(|q| millis(q) > 0)
}

/// A quantity in thousandths, rounded up; 0 if it cannot be read.
pub(crate) fn millis(quantity: &Quantity) -> i64 {
    read(quantity).map_or(0, knarr_quantity::Quantity::milli)
}

/// A quantity in whole units, rounded up; 0 if it cannot be read.
pub(crate) fn units(quantity: &Quantity) -> i64 {
    read(quantity).map_or(0, knarr_quantity::Quantity::units)
}

fn read(quantity: &Quantity) -> Option<knarr_quantity::Quantity> {
    quantity.0.parse().ok()
}

/// A container's limit for one resource, if it has one above zero.
pub(crate) fn limit<'a>(container: &'a Container, name: &str) -> Option<&'a Quantity> {
    lookup(container.resources.as_ref(), |r| &r.limits, name)
}

/// A container's request for one resource, if it has one above zero.
pub(crate) fn request<'a>(container: &'a Container, name: &str) -> Option<&'a Quantity> {
    lookup(container.resources.as_ref(), |r| &r.requests, name)
}

/// The limit of the pod as a whole for one resource, if it has one above zero.
pub(crate) fn pod_level_limit<'a>(pod: &'a Pod, name: &str) -> Option<&'a Quantity> {
    lookup(pod::spec(pod).resources.as_ref(), |r| &r.limits, name)
}

/// What the pod asks of the node for one resource, as the scheduler counts it: thousandths of a CPU, units of the rest.
///
/// Source: kubernetes, component-helpers/resource, `PodRequests`.
pub(crate) fn pod_request(pod: &Pod, name: &str) -> i64 {
    let spec = pod::spec(pod);
    let read = if name == "cpu" { millis } else { units };
    let own = lookup(spec.resources.as_ref(), |r| &r.requests, name).map(read);
    let asked = own
        .or_else(|| aggregate(pod, |c| Some(request(c, name).map_or(0, read))))
        .unwrap_or(0);
    let overhead = spec.overhead.as_ref().and_then(|o| o.get(name));
    asked.saturating_add(overhead.map_or(0, read))
}

/// The resources that some container of the pod, or the pod as a whole, asks for.
pub(crate) fn requested(pod: &Pod) -> BTreeSet<&str> {
    let spec = pod::spec(pod);
    let own = spec.resources.iter().flat_map(|r| &r.requests);
    spec.containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .flat_map(|c| c.resources.iter().flat_map(|r| &r.requests))
        .chain(own)
        .chain(&spec.overhead)
        .flat_map(|map| map.keys().map(String::as_str))
        .collect()
}

/// CPU shares on the cgroup v1 scale.
fn shares(milli_cpu: i64) -> u64 {
    (milli_cpu * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES) as u64
}

/// CFS quota for a limit; the period is [`PERIOD_US`].
fn quota(milli_cpu: i64) -> i64 {
    (milli_cpu * PERIOD_US / 1000).max(MIN_QUOTA_US)
}

/// The limits of one container's cgroup.
///
/// `memory_capacity` is the node's, in bytes; it scales `oom_score_adj` of burstable containers.
/// Source: kubernetes, pkg/kubelet/qos/policy.go.
pub(crate) fn container(pod: &Pod, container: &Container, memory_capacity: i64) -> LinuxResources {
    let cpu_request = request(container, "cpu")
        .or(limit(container, "cpu"))
        .map_or(0, millis);
    let cpu_limit = limit(container, "cpu").map(millis);
    let memory_limit = limit(container, "memory").map(units);
    let memory_request = request(container, "memory").map_or(0, units);
    let oom_score_adj = match qos(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let capacity = memory_capacity.max(1) as i128;
            let adjust = 1000 - (1000 * memory_request as i128) / capacity;
            // Between guaranteed (-997) and best effort (1000), and never equal to either.
            i32::try_from(adjust.clamp(3, 999)).unwrap_or(999)
        }
    };
    LinuxResources {
        cpu_period: cpu_limit.map(|_| PERIOD_US as u64),
        cpu_quota: cpu_limit.map(quota),
        cpu_shares: Some(shares(cpu_request)),
        memory_limit,
        // No swap for containers: memory and swap together get the memory's limit.
        memory_swap_limit: memory_limit,
        oom_score_adj: Some(oom_score_adj),
        ..LinuxResources::default()
    }
}

/// The pod's cgroup, relative to each hierarchy's root.
pub(crate) fn cgroup_path(pod: &Pod) -> String {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    match qos(pod) {
        Qos::Guaranteed => format!("kubepods/pod{uid}"),
        Qos::Burstable => format!("kubepods/burstable/pod{uid}"),
        Qos::BestEffort => format!("kubepods/besteffort/pod{uid}"),
    }
}

/// The limits of the pod's cgroup: limits hold only if every container has one.
pub(crate) fn pod(pod: &Pod) -> LinuxResources {
    let spec = pod::spec(pod);
    let pod_level = |limits: bool, name: &str| {
        let resources = spec.resources.as_ref()?;
        let map = if limits {
            &resources.limits
        } else {
            &resources.requests
        };
        map.as_ref()?.get(name)
    };
    let cpu_request = pod_level(false, "cpu").map_or_else(
        || {
            aggregate(pod, |c| {
                Some(request(c, "cpu").or(limit(c, "cpu")).map_or(0, millis))
            })
            .unwrap_or(0)
        },
        millis,
    );
    let cpu_limit = pod_level(true, "cpu")
        .map(millis)
        .or_else(|| aggregate(pod, |c| limit(c, "cpu").map(millis)));
    let memory_limit = pod_level(true, "memory")
        .map(units)
        .or_else(|| aggregate(pod, |c| limit(c, "memory").map(units)));
    let shares = match qos(pod) {
        Qos::BestEffort => MIN_SHARES as u64,
        _ => shares(cpu_request),
    };
    LinuxResources {
        cpu_period: cpu_limit.map(|_| PERIOD_US as u64),
        cpu_quota: cpu_limit.map(quota),
        cpu_shares: Some(shares),
        memory_limit,
        ..LinuxResources::default()
    }
}

/// The pod's need: the sum of what runs together, or the largest init container if that is more.
///
/// `None` as soon as one container has no value.
fn aggregate(pod: &Pod, value: impl Fn(&Container) -> Option<i64>) -> Option<i64> {
    let spec = pod::spec(pod);
    let mut sidecars = 0;
    let mut initial = 0;
    for (container, kind) in pod::init_containers(spec) {
        let own = value(container)?;
        if kind == Kind::Sidecar {
            sidecars += own;
            initial = initial.max(sidecars);
        } else {
            initial = initial.max(sidecars + own);
        }
    }
    let mut running = sidecars;
    for container in &spec.containers {
        running += value(container)?;
    }
    Some(running.max(initial))
}

/// What a pod asks for in all, for the groups above it: CPU in thousandths.
pub(crate) fn pod_cpu_request(pod: &Pod) -> i64 {
    aggregate(pod, |c| {
        Some(request(c, "cpu").or(limit(c, "cpu")).map_or(0, millis))
    })
    .unwrap_or(0)
}

fn group(path: &'static str, milli_cpu: i64) -> (&'static str, LinuxResources) {
    (
        path,
        LinuxResources {
            cpu_shares: Some(shares(milli_cpu)),
            ..LinuxResources::default()
        },
    )
}

/// The group that all pods are in.
pub(crate) const QOS_ROOT: &str = "kubepods";

/// The groups above the pods, while there are no pods yet.
pub(crate) fn qos_groups(capacity_milli_cpu: i64) -> [(&'static str, LinuxResources); 3] {
    [
        group(QOS_ROOT, capacity_milli_cpu),
        burstable_group(0),
        group("kubepods/besteffort", 0),
    ]
}

/// The group of the burstable pods, for what they ask for together.
pub(crate) fn burstable_group(milli_cpu: i64) -> (&'static str, LinuxResources) {
    group("kubepods/burstable", milli_cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod_with(resources: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"uid": "u"},
            "spec": {"containers": [{"name": "c", "resources": resources}]},
        }))
        .expect("a pod")
    }

    #[test]
    fn classes_decide_group_and_oom_score() {
        for (resources, path, score) in [
            (serde_json::json!({}), "kubepods/besteffort/podu", 1000),
            (
                serde_json::json!({"requests": {"memory": "100"}}),
                "kubepods/burstable/podu",
                900,
            ),
            (
                serde_json::json!({"limits": {"cpu": "1", "memory": "100"}}),
                "kubepods/podu",
                -997,
            ),
        ] {
            let pod = pod_with(resources);
            assert_eq!(cgroup_path(&pod), path);
            let own = container(&pod, &pod::spec(&pod).containers[0], 1000);
            assert_eq!(own.oom_score_adj, Some(score), "{path}");
        }
    }

    #[test]
    fn limits_become_quota_and_bytes() {
        let pod = pod_with(serde_json::json!({"limits": {"cpu": "250m", "memory": "64Mi"}}));
        let own = container(&pod, &pod::spec(&pod).containers[0], 1 << 30);
        assert_eq!(
            (own.cpu_quota, own.cpu_period, own.cpu_shares),
            (Some(25_000), Some(100_000), Some(256))
        );
        assert_eq!(own.memory_limit, Some(64 << 20));
        assert_eq!(super::pod(&pod).memory_limit, Some(64 << 20));
    }
}
