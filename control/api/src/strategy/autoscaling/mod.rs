//! Horizontal pod autoscalers, in both versions: `autoscaling/v2` has a list of metrics, `autoscaling/v1` the CPU alone, and
//! the rest in annotations.
//!
//! Reading order: this file (the hooks), `validation` and `metrics` (both of v2), `convert`, `print`. What is not only renamed
//! is done on v2: an object in v1 is converted first, as kube-apiserver does it.

mod convert;
mod metrics;
mod print;
mod validation;

use serde_json::{Value, json};

use convert::convert_hpa;

use super::common::{self, object_at};
use super::validation::{Errors, items};
use super::{Column, Context, Strategy};
use crate::kinds::gvk;
use crate::resource::{GroupVersionKind, Subresource};
use crate::status::FieldError;

/// Horizontal pod autoscalers in one of the two versions.
pub struct HorizontalPodAutoscaler {
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// The share of the CPU that an autoscaler without metrics aims at, in per cent.
const DEFAULT_UTILIZATION: i64 = 80;

/// The annotations of v1 that belong to the spec, and those that belong to the status.
const SPEC_ANNOTATIONS: [&str; 2] = [convert::METRICS, convert::BEHAVIOR];
const STATUS_ANNOTATIONS: [&str; 2] = [convert::CURRENT_METRICS, convert::CONDITIONS];

impl HorizontalPodAutoscaler {
    /// `autoscaling/v1`
    pub fn v1() -> Self {
        Self {
            version: Version::V1,
        }
    }

    /// `autoscaling/v2`
    pub fn v2() -> Self {
        Self {
            version: Version::V2,
        }
    }

    /// The object in v2.
    fn as_v2(&self, object: &Value) -> Value {
        let mut object = object.clone();
        if self.version == Version::V1 {
            object["apiVersion"] = "autoscaling/v1".into();
            convert_hpa(
                &mut object,
                &gvk("autoscaling/v2", "HorizontalPodAutoscaler"),
            );
        }
        object
    }
}

/// Copies annotations from the old object, and removes those that it has not.
fn keep_annotations(object: &mut Value, old: &Value, names: &[&str]) {
    for name in names {
        match old["metadata"]["annotations"].get(name) {
            Some(value) => {
                object_at(&mut object["metadata"], "annotations")
                    .insert((*name).to_owned(), value.clone());
            }
            None => {
                convert::remove_annotation(object, name);
            }
        }
    }
}

/// Rules of one direction, with what they leave out from `defaults`.
fn fill(rules: &mut Value, defaults: &Value) {
    if !rules.is_object() {
        *rules = json!({});
    }
    for (field, value) in defaults.as_object().into_iter().flatten() {
        if rules[field].is_null() {
            rules[field] = value.clone();
        }
    }
}

fn default_v2(spec: &mut Value) {
    if items(&spec["metrics"]).next().is_none() {
        spec["metrics"] = json!([convert::cpu(DEFAULT_UTILIZATION)]);
    }
    if let Some(behavior) = spec.get_mut("behavior").filter(|b| b.is_object()) {
        let policy =
            |kind: &str, value: i64| json!({ "type": kind, "value": value, "periodSeconds": 15 });
        fill(
            &mut behavior["scaleUp"],
            &json!({
                "stabilizationWindowSeconds": 0,
                "selectPolicy": "Max",
                "policies": [policy("Pods", 4), policy("Percent", 100)],
            }),
        );
        fill(
            &mut behavior["scaleDown"],
            &json!({ "selectPolicy": "Max", "policies": [policy("Percent", 100)] }),
        );
    }
}

impl Strategy for HorizontalPodAutoscaler {
    fn convert(&self, object: &mut Value, to: &GroupVersionKind) {
        convert_hpa(object, to);
    }

    fn default(&self, object: &mut Value) {
        if self.version == Version::V2 {
            default_v2(&mut object["spec"]);
            return;
        }
        let metrics = &object["metadata"]["annotations"][convert::METRICS];
        let none = metrics
            .as_str()
            .is_none_or(|text| matches!(text, "" | "[]" | "null"));
        let target = "targetCPUUtilizationPercentage";
        if none && object["spec"][target].is_null() {
            object["spec"][target] = DEFAULT_UTILIZATION.into();
        }
    }

    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        object["status"] = match self.version {
            Version::V1 => json!({ "currentReplicas": 0, "desiredReplicas": 0 }),
            Version::V2 => json!({ "desiredReplicas": 0 }),
        };
        if self.version == Version::V1 {
            for name in STATUS_ANNOTATIONS {
                convert::remove_annotation(object, name);
            }
        }
    }

    fn prepare_for_update(
        &self,
        _: &Context,
        sub: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        common::split_update(sub, object, old, false);
        if self.version == Version::V1 {
            let kept = if sub == Some(Subresource::Status) {
                SPEC_ANNOTATIONS
            } else {
                STATUS_ANNOTATIONS
            };
            keep_annotations(object, old, &kept);
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let object = self.as_v2(object);
        validation::validate(&mut errors, &object["spec"], None);
        errors.0
    }

    fn validate_update(
        &self,
        sub: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let object = self.as_v2(object);
        if sub == Some(Subresource::Status) {
            for field in ["currentReplicas", "desiredReplicas"] {
                errors.not_negative(format!("status.{field}"), &object["status"][field]);
            }
        } else {
            let old = self.as_v2(old);
            validation::validate(&mut errors, &object["spec"], Some(&old["spec"]));
        }
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        print::columns()
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        print::cells(&self.as_v2(object), now)
    }
}

#[cfg(test)]
mod tests;
