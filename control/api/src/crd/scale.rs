//! The `scale` of custom resources: where the definition says that replicas and selector are.
//!
//! Source: apiextensions-apiserver, `registry/customresource/{etcd,validator}.go`.

use serde_json::{Value, json};

use crate::status::{ApiError, FieldError};
use crate::strategy::common::text;

/// The paths of a `scale` subresource, in parts.
#[derive(Clone, Debug)]
pub struct Scale {
    spec_replicas: Vec<String>,
    status_replicas: Vec<String>,
    selector: Option<Vec<String>>,
}

impl Scale {
    /// Reads `subresources.scale`; nothing where there is none.
    pub fn read(scale: &Value) -> Option<Self> {
        let parts = |field: &str| -> Option<Vec<String>> {
            let path = scale[field].as_str().filter(|path| !path.is_empty())?;
            let path = path.strip_prefix('.').unwrap_or(path);
            Some(path.split('.').map(str::to_owned).collect())
        };
        Some(Self {
            spec_replicas: parts("specReplicasPath")?,
            status_replicas: parts("statusReplicasPath")?,
            selector: parts("labelSelectorPath"),
        })
    }

    /// The object as an `autoscaling/v1` Scale.
    pub fn of(&self, object: &Value) -> Value {
        let meta = &object["metadata"];
        let mut own = json!({});
        for field in [
            "name",
            "namespace",
            "uid",
            "resourceVersion",
            "creationTimestamp",
        ] {
            if !meta[field].is_null() {
                own[field] = meta[field].clone();
            }
        }
        let number = |parts: &[String]| at(object, parts).and_then(Value::as_i64).unwrap_or(0);
        let mut spec = json!({});
        if number(&self.spec_replicas) != 0 {
            spec["replicas"] = number(&self.spec_replicas).into();
        }
        let mut status = json!({ "replicas": number(&self.status_replicas) });
        let selector = self
            .selector
            .as_ref()
            .and_then(|parts| at(object, parts)?.as_str());
        if let Some(selector) = selector.filter(|text| !text.is_empty()) {
            status["selector"] = selector.into();
        }
        json!({ "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": own, "spec": spec, "status": status })
    }

    /// Writes a Scale's replicas into the object.
    ///
    /// # Errors
    ///
    /// `Invalid` for a negative number.
    pub fn set(&self, object: &mut Value, scale: &Value) -> Result<(), ApiError> {
        let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 {
            let error = FieldError::invalid(
                "spec.replicas",
                &replicas.into(),
                "must be greater than or equal to 0",
            );
            let name = text(&object["metadata"]["name"]);
            return Err(ApiError::invalid("autoscaling", "Scale", name, &[error]));
        }
        let mut slot = object;
        for part in &self.spec_replicas {
            if !slot.is_object() {
                *slot = json!({});
            }
            slot = &mut slot[part.as_str()];
        }
        *slot = replicas.into();
        Ok(())
    }

    /// Mistakes in what an object has at the paths.
    pub fn check(&self, object: &Value, errors: &mut Vec<FieldError>) {
        for parts in [&self.spec_replicas, &self.status_replicas] {
            let Some(value) = at(object, parts) else {
                continue;
            };
            let path = format!(".{}", parts.join("."));
            let zero = Value::from(0);
            match value.as_i64() {
                None => {
                    let detail = format!(
                        "{path} accessor error: {value} is of the type {}, expected int64",
                        go_type(value)
                    );
                    errors.push(FieldError::invalid(path, &zero, &detail));
                }
                Some(n) if n < 0 => {
                    errors.push(FieldError::invalid(
                        path,
                        value,
                        "should be a non-negative integer",
                    ));
                }
                Some(n) if n > i64::from(i32::MAX) => {
                    let detail = format!("should be less than or equal to {}", i32::MAX);
                    errors.push(FieldError::invalid(path, value, &detail));
                }
                Some(_) => {}
            }
        }
        if let Some(parts) = &self.selector
            && let Some(value) = at(object, parts)
            && !value.is_string()
        {
            let path = format!(".{}", parts.join("."));
            let detail = format!(
                "{path} accessor error: {value} is of the type {}, expected string",
                go_type(value)
            );
            errors.push(FieldError::invalid(path, &"".into(), &detail));
        }
    }
}

fn at<'v>(object: &'v Value, parts: &[String]) -> Option<&'v Value> {
    parts.iter().try_fold(object, |value, part| value.get(part))
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}
