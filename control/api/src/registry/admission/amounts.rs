//! Lists of amounts by the name of their resource, and what a pod asks for as a whole (component-helpers, `resource/helpers.go`).

use std::collections::BTreeMap;

use knarr_quantity::Quantity;
use serde_json::Value;

use crate::strategy::validation::items;

/// Amounts by the name of their resource, in the order in which messages name them.
pub type Amounts = BTreeMap<String, Quantity>;

/// The two lists of amounts that containers and pods have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// What is set aside.
    Requests,
    /// What is never exceeded.
    Limits,
}

impl List {
    fn field(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Limits => "limits",
        }
    }
}

/// Which amounts of a running container count while it is resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// Those that it is to have.
    Spec,
    /// The larger of those that it is to have and those that it has still.
    Status,
}

/// The amounts of a list in an object. What is no quantity cannot be there: the schema has read every one.
pub fn read(list: &Value) -> Amounts {
    list.as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, amount)| Some((name.clone(), amount.as_str()?.parse().ok()?)))
        .collect()
}

/// The list as it stands in an object.
pub fn write(amounts: &Amounts) -> Value {
    let amounts = amounts
        .iter()
        .map(|(name, amount)| (name.clone(), amount.to_string().into()));
    Value::Object(amounts.collect())
}

/// `cpu=1,memory=2Gi`.
pub fn print(amounts: &Amounts) -> String {
    let amounts: Vec<String> = amounts
        .iter()
        .map(|(name, amount)| format!("{name}={amount}"))
        .collect();
    amounts.join(",")
}

/// Adds to each amount, and takes over those that are not there yet.
pub fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = to.get(name).map_or(*amount, |had| *had + *amount);
        to.insert(name.clone(), sum);
    }
}

/// Raises each amount to at least this much.
pub fn raise(to: &mut Amounts, least: &Amounts) {
    for (name, amount) in least {
        let less = to.get(name).is_none_or(|had| had.nano() < amount.nano());
        if less {
            to.insert(name.clone(), *amount);
        }
    }
}

/// What a pod asks for in its containers and as a whole; its overhead is not in it.
///
/// Init containers run one after the other, before the rest; those that keep running count from their start on.
pub fn of_pod(pod: &Value, list: List, basis: Basis) -> Amounts {
    let spec = &pod["spec"];
    let amounts = |container: &Value, statuses: &str| {
        let wanted = read(&container["resources"][list.field()]);
        match basis {
            Basis::Spec => wanted,
            Basis::Status => with_status(pod, container, statuses, list, wanted),
        }
    };
    let mut total = Amounts::new();
    for (_, container) in items(&spec["containers"]) {
        add(&mut total, &amounts(container, "containerStatuses"));
    }
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for (_, container) in items(&spec["initContainers"]) {
        let own = amounts(container, "initContainerStatuses");
        if container["restartPolicy"] == "Always" {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            raise(&mut peak, &sidecars);
        } else {
            let mut meanwhile = sidecars.clone();
            add(&mut meanwhile, &own);
            raise(&mut peak, &meanwhile);
        }
    }
    raise(&mut total, &peak);
    for (name, amount) in read(&spec["resources"][list.field()]) {
        if matches!(&*name, "cpu" | "memory") || name.starts_with("hugepages-") {
            total.insert(name, amount);
        }
    }
    total
}

/// A pod's overhead for a list: limits are raised only where there are any.
pub fn add_overhead(pod: &Value, list: List, total: &mut Amounts) {
    let mut overhead = read(&pod["spec"]["overhead"]);
    if list == List::Limits {
        overhead.retain(|name, _| total.get(name).is_some_and(|limit| limit.nano() != 0));
    }
    add(total, &overhead);
}

fn with_status(
    pod: &Value,
    container: &Value,
    statuses: &str,
    list: List,
    wanted: Amounts,
) -> Amounts {
    let status = items(&pod["status"][statuses])
        .map(|(_, status)| status)
        .find(|status| status["name"] == container["name"]);
    let Some(status) = status.filter(|status| status["resources"].is_object()) else {
        return wanted;
    };
    let mut amounts = read(&status["resources"][list.field()]);
    if list == List::Requests {
        raise(&mut amounts, &read(&status["allocatedResources"]));
    }
    let infeasible = items(&pod["status"]["conditions"]).any(|(_, condition)| {
        condition["type"] == "PodResizePending" && condition["reason"] == "Infeasible"
    });
    if !infeasible {
        raise(&mut amounts, &wanted);
    }
    amounts
}

/// For tests: a container with these requests and limits.
#[cfg(test)]
pub fn container(name: &str, requests: Value, limits: Value) -> Value {
    serde_json::json!({ "name": name, "resources": { "requests": requests, "limits": limits } })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_asks_for_the_most_that_runs_at_once() {
        let one = |name| container(name, json!({ "cpu": "1" }), json!({ "cpu": "2" }));
        let mut sidecar = one("sidecar");
        sidecar["restartPolicy"] = "Always".into();
        let big = container("big", json!({ "cpu": "3", "memory": "1Gi" }), json!({}));
        for (spec, requests, limits) in [
            (
                json!({ "containers": [one("a"), one("b")] }),
                "cpu=2",
                "cpu=4",
            ),
            (
                json!({ "containers": [one("a")], "initContainers": [big] }),
                "cpu=3,memory=1Gi",
                "cpu=2",
            ),
            (
                json!({ "containers": [one("a")], "initContainers": [sidecar, big] }),
                "cpu=4,memory=1Gi",
                "cpu=4",
            ),
            (
                json!({ "containers": [one("a")], "resources": { "requests": { "cpu": "5" } } }),
                "cpu=5",
                "cpu=2",
            ),
        ] {
            let pod = json!({ "spec": spec });
            let of = |list| print(&of_pod(&pod, list, Basis::Spec));
            assert_eq!(of(List::Requests), requests, "{pod}");
            assert_eq!(of(List::Limits), limits, "{pod}");
        }
    }

    #[test]
    fn a_container_that_is_resized_counts_with_what_it_still_has() {
        let mut pod = json!({
            "spec": { "containers": [container("a", json!({ "cpu": "1" }), json!({}))] },
            "status": { "containerStatuses": [
                { "name": "a", "resources": { "requests": { "cpu": "2" } }, "allocatedResources": { "cpu": "2" } },
            ] },
        });
        let requests = |pod: &Value| print(&of_pod(pod, List::Requests, Basis::Status));
        assert_eq!(requests(&pod), "cpu=2");
        pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "8".into();
        assert_eq!(requests(&pod), "cpu=8");
        pod["status"]["conditions"] =
            json!([{ "type": "PodResizePending", "reason": "Infeasible" }]);
        assert_eq!(requests(&pod), "cpu=2");
    }

    #[test]
    fn overhead_counts_for_limits_that_are_set() {
        let pod = json!({ "spec": { "overhead": { "cpu": "100m", "memory": "64Mi" } } });
        let mut limits = read(&json!({ "cpu": "1" }));
        add_overhead(&pod, List::Limits, &mut limits);
        assert_eq!(print(&limits), "cpu=1100m");
        let mut requests = read(&json!({ "cpu": "1" }));
        add_overhead(&pod, List::Requests, &mut requests);
        assert_eq!(print(&requests), "cpu=1100m,memory=64Mi");
    }
}
