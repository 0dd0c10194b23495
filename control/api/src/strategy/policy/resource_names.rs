//! The names of resources that quotas and limit ranges may speak of (`pkg/apis/core/helper`).

use knarr_quantity::Quantity;
use serde_json::Value;

use crate::strategy::common::text;
use crate::strategy::validation::{Errors, qualified_name};

/// What is counted, in whole numbers.
const COUNTED: [&str; 9] = [
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

/// What pods and claims use, as it is limited, and as it is asked for.
const USED: [&str; 10] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "requests.storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
];

/// Whether a name is that of huge pages, or of requests of them.
fn is_huge_pages(name: &str) -> bool {
    let name = name.strip_prefix("requests.").unwrap_or(name);
    name.starts_with("hugepages-")
}

/// Whether a quota can bound a resource by its bare name.
pub(super) fn is_of_quotas(name: &str) -> bool {
    COUNTED.contains(&name) || USED.contains(&name) || is_huge_pages(name)
}

/// Whether a name is in Kubernetes' own domain, or in none.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether a resource is that of a device, which is named after its maker.
fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && qualified_name(&format!("requests.{name}")).is_empty()
}

/// Whether more of a resource may be promised than there is.
pub(super) fn may_be_overcommitted(name: &str) -> bool {
    is_native(name) && !name.starts_with("hugepages-")
}

/// Refuses a name that is neither qualified nor one of Kubernetes' own.
pub(super) fn check(errors: &mut Errors, at: &str, name: &str) {
    let wrong = qualified_name(name);
    let known = name.contains('/') || is_of_quotas(name) || name == "storage";
    if wrong.is_empty() && !known {
        errors.add(
            at,
            &name.into(),
            "must be a standard resource type or fully qualified",
        );
    }
    errors.invalid(at, name, wrong);
}

/// Refuses a name that no quota can have.
pub(super) fn check_of_quota(errors: &mut Errors, at: &str, name: &str) {
    check(errors, at, name);
    if !name.contains('/') && !is_of_quotas(name) {
        errors.add(at, &name.into(), "must be a standard resource for quota");
    }
}

/// Refuses a name that no container can ask for.
pub(super) fn check_of_container(errors: &mut Errors, at: &str, name: &str) {
    let before = errors.0.len();
    check(errors, at, name);
    let native =
        matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if !name.contains('/') && !native {
        errors.add(
            at,
            &name.into(),
            "must be a standard resource for containers",
        );
    } else if errors.0.len() == before && !is_native(name) && !is_extended(name) {
        errors.add(
            at,
            &name.into(),
            "doesn't follow extended resource name standard",
        );
    }
}

/// A quantity; every one has passed the schema.
pub(super) fn quantity(value: &Value) -> Option<Quantity> {
    text(value).parse().ok()
}

/// Refuses an amount below zero, and a fraction of what is counted.
pub(super) fn check_amount(errors: &mut Errors, at: &str, name: &str, value: &Value) {
    let Some(quantity) = quantity(value) else {
        return;
    };
    if quantity.nano() < 0 {
        errors.add(at, value, "must be greater than or equal to 0");
    }
    let whole = quantity.nano() % 1_000_000_000 == 0;
    if (COUNTED.contains(&name) || is_extended(name)) && !whole {
        errors.add(at, value, "must be an integer");
    }
}
