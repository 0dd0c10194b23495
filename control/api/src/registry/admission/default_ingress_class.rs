//! DefaultIngressClass: ingresses that name no class get the default one (kubernetes,
//! `plugin/pkg/admission/network/defaultingressclass`).

use async_trait::async_trait;
use serde_json::Value;

use super::{Changed, Plugin, default_class};
use crate::registry::Registry;
use crate::registry::operation::{Action, Operation};
use crate::status::ApiError;

/// What marks the default class.
const MARK: &str = "ingressclass.kubernetes.io/is-default-class";

/// Gives new ingresses the default ingress class.
pub struct DefaultIngressClass;

#[async_trait]
impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn handles(&self, operation: &Operation) -> bool {
        operation.action == Action::Create && operation.is_about("networking.k8s.io", "ingresses")
    }

    async fn mutate(
        &self,
        registry: &Registry,
        operation: &mut Operation,
    ) -> Result<Changed, ApiError> {
        if let Some(ingress) = operation
            .new
            .as_mut()
            .filter(|ingress| !names_class(ingress))
            && let Some(class) = default_class::find(registry, "ingressclasses", &[MARK])
        {
            ingress["spec"]["ingressClassName"] = class.into();
        }
        Ok(Changed::No)
    }
}

/// Whether an ingress names a class, in its spec or as it was done before.
fn names_class(ingress: &Value) -> bool {
    let annotations = &ingress["metadata"]["annotations"];
    !annotations["kubernetes.io/ingress.class"].is_null()
        || ingress["spec"]["ingressClassName"].is_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_annotation_names_a_class_as_well_as_the_field() {
        for (ingress, expected) in [
            (json!({ "spec": {} }), false),
            (json!({ "spec": { "ingressClassName": "web" } }), true),
            (
                json!({ "metadata": { "annotations": { "kubernetes.io/ingress.class": "web" } } }),
                true,
            ),
        ] {
            assert_eq!(names_class(&ingress), expected, "{ingress}");
        }
    }
}
