//! What pods ask for and nodes have.

use std::collections::BTreeMap;

use knarr_quantity::Quantity;

use crate::model::{Container, PodSpec};

/// Quantities as the API writes them, by resource.
pub(crate) type Quantities = BTreeMap<String, String>;

/// Amounts of resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    /// Thousandths of a CPU.
    pub cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral: i64,
    /// How many pods.
    pub pods: i64,
    /// Whatever else, by name: devices, huge pages.
    pub others: Vec<(Box<str>, i64)>,
}

impl Resources {
    /// Reads quantities; what is no quantity counts as none, since the API server lets only quantities pass.
    pub fn parse(quantities: &Quantities) -> Self {
        let mut resources = Self::default();
        for (name, text) in quantities {
            let Ok(quantity) = text.parse::<Quantity>() else {
                continue;
            };
            match name.as_str() {
                "cpu" => resources.cpu = quantity.milli(),
                "memory" => resources.memory = quantity.units(),
                "ephemeral-storage" => resources.ephemeral = quantity.units(),
                "pods" => resources.pods = quantity.units(),
                other => *resources.other_mut(other) = quantity.units(),
            }
        }
        resources
    }

    fn other_mut(&mut self, name: &str) -> &mut i64 {
        let at = match self.others.iter().position(|(known, _)| &**known == name) {
            Some(at) => at,
            None => {
                self.others.push((name.into(), 0));
                self.others.len() - 1
            }
        };
        &mut self.others[at].1
    }

    /// The amount of a resource other than the four basic ones.
    pub fn other(&self, name: &str) -> i64 {
        self.others
            .iter()
            .find(|(known, _)| &**known == name)
            .map_or(0, |(_, amount)| *amount)
    }

    /// Adds `sign` times the other amounts.
    pub fn add(&mut self, other: &Self, sign: i64) {
        self.cpu = self.cpu.saturating_add(sign * other.cpu);
        self.memory = self.memory.saturating_add(sign * other.memory);
        self.ephemeral = self.ephemeral.saturating_add(sign * other.ephemeral);
        self.pods = self.pods.saturating_add(sign * other.pods);
        for (name, amount) in &other.others {
            *self.other_mut(name) += sign * amount;
        }
    }

    /// Raises each amount to at least the other's.
    fn raise(&mut self, other: &Self) {
        self.cpu = self.cpu.max(other.cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral = self.ephemeral.max(other.ephemeral);
        for (name, amount) in &other.others {
            let own = self.other_mut(name);
            *own = (*own).max(*amount);
        }
    }

    /// What a pod asks for: the sum of its containers and sidecars, or what one of its init containers needs beside the sidecars
    /// started before it, if that is more; plus the overhead. Source: kubernetes, `resourcehelper.PodRequests`.
    pub fn of_pod(spec: &PodSpec) -> Self {
        let requests = |container: &Container| Self::parse(&container.resources.requests);
        let mut total = Self::default();
        for container in &spec.containers {
            total.add(&requests(container), 1);
        }
        let mut sidecars = Self::default();
        let mut start = Self::default();
        for container in &spec.init_containers {
            let mut needed = requests(container);
            if container.restart_policy.as_deref() == Some("Always") {
                total.add(&needed, 1);
                sidecars.add(&needed, 1);
                start.raise(&sidecars);
            } else {
                needed.add(&sidecars, 1);
                start.raise(&needed);
            }
        }
        total.raise(&start);
        if let Some(pod) = &spec.resources {
            // Requests of the pod as a whole take the place of the containers', for those resources that they name.
            let whole = Self::parse(&pod.requests);
            for name in pod.requests.keys() {
                match name.as_str() {
                    "cpu" => total.cpu = whole.cpu,
                    "memory" => total.memory = whole.memory,
                    other => *total.other_mut(other) = whole.other(other),
                }
            }
        }
        total.add(&Self::parse(&spec.overhead), 1);
        total.pods = 1;
        total
    }
}

/// What a pod that asks for nothing counts as when nodes are compared. Source: kubernetes, `schedutil.DefaultMilliCPURequest`.
pub(crate) const DEFAULT_CPU: i64 = 100;
/// The same for memory.
pub(crate) const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn cpu(spec: Value) -> i64 {
        Resources::of_pod(&serde_json::from_value(spec).expect("a spec")).cpu
    }

    fn container(cpu: &str) -> Value {
        json!({"resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn a_pod_asks_for_its_containers_or_its_largest_start() {
        let sidecar = json!({"resources": {"requests": {"cpu": "50m"}}, "restartPolicy": "Always"});
        for (spec, expected) in [
            (
                json!({"containers": [container("100m"), container("200m")]}),
                300,
            ),
            (
                json!({"containers": [container("100m")], "initContainers": [container("1")]}),
                1000,
            ),
            (
                json!({"containers": [container("100m")], "initContainers": [sidecar, container("1")]}),
                1050,
            ),
            (
                json!({"containers": [container("100m")], "initContainers": [container("1"), sidecar]}),
                1000,
            ),
            (
                json!({"containers": [container("100m")], "initContainers": [sidecar]}),
                150,
            ),
            (
                json!({"containers": [container("100m")], "overhead": {"cpu": "10m"}}),
                110,
            ),
            (
                json!({"containers": [container("100m")], "resources": {"requests": {"cpu": "2"}}}),
                2000,
            ),
        ] {
            assert_eq!(cpu(spec.clone()), expected, "{spec}");
        }
    }
}
