//! The annotation in which `kubectl apply` keeps what it applied before there was server-side apply.
//!
//! Only the manager `kubectl` has to do with it, so that changing from one kind of apply to the other conflicts with nothing.
//! Source: apimachinery `util/managedfields/internal` (`lastappliedmanager.go`, `lastappliedupdater.go`).

use serde_json::Value;

use super::compare::compare;
use super::item_value::go_json;
use super::set::FieldSet;
use super::typed::set_of;
use super::{Write, check};

/// The manager whose applies keep the annotation in step.
pub const KUBECTL: &str = "kubectl";

const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// How many bytes keys and values of all annotations may have.
const MAX_ANNOTATIONS: usize = 256 << 10;

/// The fields that the annotation says were applied and that still have the values from then.
///
/// None without the annotation, or if it is no object of this kind and version: then the conflicts stay.
pub fn owned(write: &Write<'_>, live: &Value) -> Option<FieldSet> {
    let text = annotation(live)?;
    let applied: Value = serde_json::from_str(text).ok()?;
    if applied["apiVersion"] != write.manager.api_version.as_str() {
        return None;
    }
    check::validate(write.schema, &applied).ok()?;
    let changes = compare(write.schema, Some(&applied), live).ok()?;
    let set = set_of(write.schema, &applied).ok()?;
    Some(
        set.difference(&changes.written())
            .difference(&changes.removed),
    )
}

fn annotation(object: &Value) -> Option<&str> {
    let text = object
        .get("metadata")?
        .get("annotations")?
        .get(ANNOTATION)?
        .as_str()?;
    (!text.is_empty()).then_some(text)
}

/// Brings the annotation of the object, where it has one, to what was applied now.
///
/// A configuration too big for annotations leaves the object without it.
pub fn refresh(object: &mut Value, config: &Value) {
    if annotation(object).is_none() {
        return;
    }
    let mut config = config.clone();
    if let Some(annotations) = config
        .pointer_mut("/metadata/annotations")
        .and_then(Value::as_object_mut)
    {
        annotations.remove(ANNOTATION);
    }
    let text = go_json(&config) + "\n"; // Kubernetes' encoder ends every object with a newline.
    let Some(annotations) = object
        .pointer_mut("/metadata/annotations")
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    annotations.insert(ANNOTATION.to_owned(), text.into());
    let size: usize = annotations
        .iter()
        .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len))
        .sum();
    if size > MAX_ANNOTATIONS {
        annotations.remove(ANNOTATION);
    }
}
