//! How the objects of a resource are measured: by which names, and in which operations (kubernetes, `pkg/quota/v1/evaluator/core`).

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use knarr_quantity::Quantity;
use serde_json::Value;

use super::used::{
    OF_CLASS, attributes_classes, compute, is_extended, of_claim, of_pod, of_service,
};
use crate::registry::admission::amounts::{self, Amounts};
use crate::registry::operation::{Action, Operation};
use crate::resource::Subresource;
use crate::strategy::validation::items;

/// What a quota makes every container ask for.
const MANDATORY: [&str; 6] = [
    "cpu",
    "memory",
    "requests.cpu",
    "requests.memory",
    "limits.cpu",
    "limits.memory",
];

/// How the objects of a resource are measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Measure {
    /// By their number and by what they ask for.
    Pods,
    /// By their number, their node ports and their load balancers.
    Services,
    /// By their number and size, as a whole and by storage class.
    Claims,
    /// By their number alone.
    Count {
        /// `count/deployments.apps`.
        name: String,
        /// The name from before every resource could be counted.
        alias: Option<&'static str>,
    },
}

impl Measure {
    /// That of a resource; none for events, which no quota counts.
    pub fn of(group: &str, plural: &str) -> Option<Self> {
        let alias = match (group, plural) {
            ("", "events") => return None,
            ("", "pods") => return Some(Self::Pods),
            ("", "services") => return Some(Self::Services),
            ("", "persistentvolumeclaims") => return Some(Self::Claims),
            ("", "configmaps") => Some("configmaps"),
            ("", "replicationcontrollers") => Some("replicationcontrollers"),
            ("", "resourcequotas") => Some("resourcequotas"),
            ("", "secrets") => Some("secrets"),
            _ => None,
        };
        let name = match group {
            "" => format!("count/{plural}"),
            group => format!("count/{plural}.{group}"),
        };
        Some(Self::Count { name, alias })
    }

    /// Whether an operation may raise what its object uses.
    pub fn concerns(&self, operation: &Operation) -> bool {
        match (self, operation.action, operation.subresource) {
            (_, Action::Create, None)
            | (Self::Pods, Action::Update, Some(Subresource::Resize))
            | (Self::Services | Self::Claims, Action::Update, None) => true,
            // A volume that grows, or is about to change its class.
            (Self::Claims, Action::Update, Some(Subresource::Status)) => {
                let (new, old) = (&operation.new, &operation.old);
                let measured = |claim: &Option<Value>| {
                    let claim = claim.as_ref()?;
                    let allocated = claim["status"]["allocatedResources"]["storage"].clone();
                    let classes: BTreeSet<String> =
                        attributes_classes(claim).map(str::to_owned).collect();
                    Some((allocated, classes))
                };
                measured(new) != measured(old)
            }
            _ => false,
        }
    }

    /// Whether an amount that a quota bounds is measured in these objects.
    pub fn measures(&self, name: &str) -> bool {
        match self {
            Self::Pods => match name {
                "count/pods" | "pods" | "cpu" | "memory" | "ephemeral-storage" => true,
                "requests.cpu" | "requests.memory" | "requests.ephemeral-storage" => true,
                "limits.cpu" | "limits.memory" | "limits.ephemeral-storage" => true,
                _ => {
                    let huge = name.strip_prefix("requests.").unwrap_or(name);
                    huge.starts_with("hugepages-")
                        || name.strip_prefix("requests.").is_some_and(is_extended)
                }
            },
            Self::Services => matches!(
                name,
                "count/services" | "services" | "services.nodeports" | "services.loadbalancers"
            ),
            Self::Claims => {
                let name = name.split_once(OF_CLASS).map_or(name, |(_, name)| name);
                matches!(
                    name,
                    "count/persistentvolumeclaims" | "persistentvolumeclaims" | "requests.storage"
                )
            }
            Self::Count { name: own, alias } => name == own || *alias == Some(name),
        }
    }

    /// What one object uses.
    pub fn usage(&self, object: &Value, now: Timestamp) -> Amounts {
        match self {
            Self::Pods => of_pod(object, now),
            Self::Services => of_service(object),
            Self::Claims => of_claim(object),
            Self::Count { name, alias } => {
                let names = [Some(&**name), *alias];
                let one = |name: &str| (name.to_owned(), Quantity::from(1));
                names.into_iter().flatten().map(one).collect()
            }
        }
    }

    /// What an object must say that a quota bounds these amounts of, in the words of a refusal.
    pub fn lacks(&self, object: &Value, bounded: &[&str]) -> Option<String> {
        let whole = &object["spec"]["resources"];
        let of_whole = ["requests", "limits"]
            .iter()
            .any(|list| !amounts::read(&whole[list]).is_empty());
        if *self != Self::Pods || of_whole {
            return None;
        }
        let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for list in ["containers", "initContainers"] {
            for (_, container) in items(&object["spec"][list]) {
                let resources = &container["resources"];
                let has = compute(
                    &amounts::read(&resources["requests"]),
                    &amounts::read(&resources["limits"]),
                );
                for name in bounded {
                    if MANDATORY.contains(name) && !has.contains_key(*name) {
                        let container = container["name"].as_str().unwrap_or_default();
                        missing.entry(name).or_default().insert(container);
                    }
                }
            }
        }
        let missing: Vec<String> = missing
            .into_iter()
            .map(|(name, containers)| {
                let containers: Vec<&str> = containers.into_iter().collect();
                format!("{name} for: {}", containers.join(","))
            })
            .collect();
        (!missing.is_empty()).then(|| format!("must specify {}", missing.join("; ")))
    }
}
