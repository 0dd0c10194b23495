//! DefaultStorageClass: claims that name no class get the default one (kubernetes,
//! `plugin/pkg/admission/storage/storageclass/setdefault`).

use async_trait::async_trait;
use serde_json::Value;

use super::{Changed, Plugin, default_class};
use crate::registry::Registry;
use crate::registry::operation::{Action, Operation};
use crate::status::ApiError;

/// What marks the default class, now and formerly.
const MARKS: [&str; 2] = [
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];

/// Gives new claims the default storage class.
pub struct DefaultStorageClass;

#[async_trait]
impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn handles(&self, operation: &Operation) -> bool {
        operation.action == Action::Create && operation.is_about("", "persistentvolumeclaims")
    }

    async fn mutate(
        &self,
        registry: &Registry,
        operation: &mut Operation,
    ) -> Result<Changed, ApiError> {
        if let Some(claim) = operation.new.as_mut().filter(|claim| !names_class(claim))
            && let Some(class) = default_class::find(registry, "storageclasses", &MARKS)
        {
            claim["spec"]["storageClassName"] = class.into();
        }
        Ok(Changed::No)
    }
}

/// Whether a claim names a class; to name the empty one is to want none.
fn names_class(claim: &Value) -> bool {
    let annotations = &claim["metadata"]["annotations"];
    annotations["volume.beta.kubernetes.io/storage-class"].is_string()
        || claim["spec"]["storageClassName"].is_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing;
    use super::*;
    use crate::resource::Scope;

    #[test]
    fn a_claim_that_wants_no_class_names_the_empty_one() {
        for (claim, expected) in [
            (json!({ "spec": {} }), false),
            (json!({ "spec": { "storageClassName": null } }), false),
            (json!({ "spec": { "storageClassName": "" } }), true),
            (
                json!({ "metadata": { "annotations": { "volume.beta.kubernetes.io/storage-class": "gold" } } }),
                true,
            ),
        ] {
            assert_eq!(names_class(&claim), expected, "{claim}");
        }
    }

    #[tokio::test]
    async fn a_claim_gets_the_default_class_where_there_is_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let kinds = [
            (
                "storage.k8s.io/v1",
                "StorageClass",
                "storageclasses",
                Scope::Cluster,
            ),
            (
                "v1",
                "PersistentVolumeClaim",
                "persistentvolumeclaims",
                Scope::Namespaced,
            ),
        ];
        let registry = testing::registry(&directory, &kinds).await;
        let class = async || {
            let claim = json!({ "metadata": { "name": "c" }, "spec": {} });
            let plural = "persistentvolumeclaims";
            let mut operation = testing::creation(&registry, plural, "shop", claim);
            assert!(DefaultStorageClass.handles(&operation));
            let filled = DefaultStorageClass.mutate(&registry, &mut operation).await;
            filled.expect("a claim without a class is allowed");
            operation.new.expect("the claim stays")["spec"]["storageClassName"].clone()
        };
        assert_eq!(class().await, Value::Null);
        let gold = json!({ "metadata": { "name": "gold", "annotations": { MARKS[0]: "true" } } });
        testing::create(&registry, "storageclasses", "", gold).await;
        assert_eq!(class().await, "gold");
    }
}
