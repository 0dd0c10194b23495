//! PersistentVolumeClaimResize: a claim grows only where its storage class lets it (kubernetes,
//! `plugin/pkg/admission/storage/persistentvolume/resize`).

use async_trait::async_trait;
use knarr_quantity::Quantity;
use serde_json::Value;

use super::resource_quota::class_of;
use super::{Plugin, amounts};
use crate::registry::Registry;
use crate::registry::operation::{Action, Operation};
use crate::status::ApiError;

const UNBOUND: &str = "Only bound persistent volume claims can be expanded";
const FIXED: &str = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";

/// Refuses claims that grow and cannot.
pub struct PersistentVolumeClaimResize;

#[async_trait]
impl Plugin for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn handles(&self, operation: &Operation) -> bool {
        operation.action == Action::Update && operation.is_about("", "persistentvolumeclaims")
    }

    async fn validate(&self, registry: &Registry, operation: &Operation) -> Result<(), ApiError> {
        let (Some(old), Some(new)) = (&operation.old, &operation.new) else {
            return Ok(());
        };
        let Some(classes) = registry.collection("storageclasses") else {
            return Ok(());
        };
        let class = classes.get(class_of(new)).map(|entry| entry.parse());
        match obstacle(old, new, class.as_ref()) {
            Some(detail) => {
                let resource = "persistentvolumeclaims";
                Err(ApiError::forbidden("", resource, &operation.name, detail))
            }
            None => Ok(()),
        }
    }
}

/// Why a claim cannot become what it is to be; `class` is the one that it names, if there is one.
fn obstacle(old: &Value, new: &Value, class: Option<&Value>) -> Option<&'static str> {
    let size = |claim: &Value| {
        let requests = amounts::read(&claim["spec"]["resources"]["requests"]);
        requests.get("storage").copied().map_or(0, Quantity::nano)
    };
    let same_class = class_of(old) == class_of(new);
    let expands = class.is_some_and(|class| class["allowVolumeExpansion"] == true);
    if size(new) <= size(old) {
        None
    } else if old["status"]["phase"] != "Bound" {
        Some(UNBOUND)
    } else {
        (!same_class || !expands).then_some(FIXED)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_grow_where_their_class_lets_them() {
        let claim = |size: &str, class: &str, phase: &str| {
            json!({ "spec": { "storageClassName": class, "resources": { "requests": { "storage": size } } },
                "status": { "phase": phase } })
        };
        let class = |expands: Value| json!({ "allowVolumeExpansion": expands });
        let bound = claim("1Gi", "gold", "Bound");
        #[rustfmt::skip] // The columns are compared.
        let table = [
            (bound.clone(), claim("2Gi", "gold", "Bound"), Some(class(json!(true))), None),
            (bound.clone(), claim("1Gi", "gold", "Bound"), None, None),
            (bound.clone(), claim("512Mi", "gold", "Bound"), None, None),
            (claim("1Gi", "gold", "Pending"), claim("2Gi", "gold", "Pending"), Some(class(json!(true))), Some(UNBOUND)),
            (bound.clone(), claim("2Gi", "gold", "Bound"), Some(class(json!(false))), Some(FIXED)),
            (bound.clone(), claim("2Gi", "gold", "Bound"), Some(class(Value::Null)), Some(FIXED)),
            (bound.clone(), claim("2Gi", "gold", "Bound"), None, Some(FIXED)),
            (bound, claim("2Gi", "iron", "Bound"), Some(class(json!(true))), Some(FIXED)),
        ];
        for (old, new, class, expected) in table {
            assert_eq!(
                obstacle(&old, &new, class.as_ref()),
                expected,
                "{old} {new} {class:?}"
            );
        }
    }
}
