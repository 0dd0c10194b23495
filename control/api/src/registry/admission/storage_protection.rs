//! StorageObjectInUseProtection: volumes, claims and attributes classes stay while something uses them (kubernetes,
//! `plugin/pkg/admission/storage/storageobjectinuseprotection`). Controllers take the finalizers off again.

use async_trait::async_trait;
use serde_json::Value;

use super::{Changed, Plugin};
use crate::registry::operation::{Action, Operation};
use crate::registry::{Registry, meta};
use crate::status::ApiError;

/// The resources, by group and plural, and their finalizers.
const PROTECTED: [(&str, &str, &str); 3] = [
    ("", "persistentvolumes", "kubernetes.io/pv-protection"),
    ("", "persistentvolumeclaims", "kubernetes.io/pvc-protection"),
    (
        "storage.k8s.io",
        "volumeattributesclasses",
        "kubernetes.io/vac-protection",
    ),
];

/// Gives new volumes, claims and attributes classes their finalizers.
pub struct StorageObjectInUseProtection;

#[async_trait]
impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn handles(&self, operation: &Operation) -> bool {
        operation.action == Action::Create && finalizer(operation).is_some()
    }

    async fn mutate(&self, _: &Registry, operation: &mut Operation) -> Result<Changed, ApiError> {
        if let (Some(finalizer), Some(object)) = (finalizer(operation), &mut operation.new) {
            protect(object, finalizer);
        }
        Ok(Changed::No)
    }
}

fn finalizer(operation: &Operation) -> Option<&'static str> {
    let mut rows = PROTECTED.iter();
    rows.find(|(group, plural, _)| operation.is_about(group, plural))
        .map(|(_, _, finalizer)| *finalizer)
}

fn protect(object: &mut Value, finalizer: &str) {
    let present = meta::finalizers(object);
    if !present.contains(&finalizer) {
        let mut finalizers: Vec<String> = present.into_iter().map(str::to_owned).collect();
        finalizers.push(finalizer.to_owned());
        meta::set_finalizers(object, &finalizers);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_finalizer_is_added_once() {
        let mut claim = json!({ "metadata": { "finalizers": ["own"] } });
        protect(&mut claim, "kubernetes.io/pvc-protection");
        protect(&mut claim, "kubernetes.io/pvc-protection");
        assert_eq!(
            claim["metadata"]["finalizers"],
            json!(["own", "kubernetes.io/pvc-protection"])
        );
    }
}
