//! Events, in both groups: stored as `v1`, served as `v1` and as `events.k8s.io/v1`.

use serde_json::Value;

use super::common::{selectable, text};
use super::validation::Errors;
use super::{Column, Context, Strategy};
use crate::resource::GroupVersionKind;
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::table;

/// Events of one of the two groups.
pub struct Event {
    core: bool,
}

impl Event {
    /// `v1`
    pub fn core() -> Self {
        Self { core: true }
    }

    /// `events.k8s.io/v1`
    pub fn new() -> Self {
        Self { core: false }
    }
}

impl Default for Event {
    fn default() -> Self {
        Self::new()
    }
}

/// The fields that have two names: in `v1`, in `events.k8s.io/v1`.
const NAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// Renames the fields of an event to those of the version `to`; one that is in that version already stays.
fn convert_event(object: &mut Value, to: &GroupVersionKind) {
    let Some(fields) = object.as_object_mut() else {
        return;
    };
    for (core, new) in NAMES {
        let (from, to) = if to.group.is_empty() {
            (*new, *core)
        } else {
            (*core, *new)
        };
        if let Some(value) = fields.remove(from) {
            fields.insert(to.to_owned(), value);
        }
    }
}

/// Both versions' view of a field.
fn field<'a>(object: &'a Value, core: &str) -> &'a Value {
    let new = NAMES
        .iter()
        .find(|(name, _)| *name == core)
        .map_or(core, |(_, new)| *new);
    object.get(core).unwrap_or(&object[new])
}

const FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

const NEW_FIELDS: &[&str] = &[
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reason",
    "reportingController",
    "type",
];

impl Strategy for Event {
    fn convert(&self, object: &mut Value, to: &GroupVersionKind) {
        convert_event(object, to);
    }

    fn prepare_for_update(&self, _: &Context, _: Option<Subresource>, _: &mut Value, _: &Value) {}

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let involved = field(object, "involvedObject");
        let namespace = text(&object["metadata"]["namespace"]);
        let about = text(&involved["namespace"]);
        // Events about objects of the cluster live in `default`.
        if about.is_empty() && !matches!(namespace, "" | "default" | "kube-system")
            || !about.is_empty() && about != namespace
        {
            errors.add(
                "involvedObject.namespace",
                &involved["namespace"],
                "does not match event.namespace",
            );
        }
        let modern = !object["eventTime"].is_null();
        if !self.core && !modern {
            errors.required("eventTime", "");
        }
        if modern {
            let controller = field(object, "reportingComponent");
            if text(controller).is_empty() {
                errors.required("reportingController", "");
            }
            for (at, value, limit) in [
                ("reportingInstance", &object["reportingInstance"], 128),
                ("action", &object["action"], 128),
                ("reason", &object["reason"], 128),
            ] {
                if text(value).is_empty() {
                    errors.required(at, "");
                } else if text(value).len() > limit {
                    errors.add(at, value, &format!("can have at most {limit} characters"));
                }
            }
            if text(field(object, "message")).len() > 1024 {
                errors.add(
                    "message",
                    field(object, "message"),
                    "can have at most 1024 characters",
                );
            }
        }
        errors.0
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let involved = field(object, "involvedObject");
        let mut source = text(&field(object, "source")["component"]);
        let reporting = text(field(object, "reportingComponent"));
        if source.is_empty() {
            source = reporting;
        }
        self.selectable_field_names()
            .iter()
            .map(|name| {
                let value = match name.split_once('.') {
                    Some((_, inner)) => selectable(involved, &[inner]),
                    None => match *name {
                        "source" => source.to_owned(),
                        "reportingComponent" | "reportingController" => reporting.to_owned(),
                        other => text(&object[other]).to_owned(),
                    },
                };
                (*name, value)
            })
            .collect()
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        if self.core { FIELDS } else { NEW_FIELDS }
    }

    fn columns(&self) -> Vec<Column> {
        table::columns(
            "Last_Seen Type Reason Object Subobject* Source* Message First_Seen* Count* Name*",
        )
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let involved = field(object, "involvedObject");
        let event_time = object["eventTime"].as_str();
        let first = field(object, "firstTimestamp").as_str().or(event_time);
        let series = &object["series"];
        let mut last = field(object, "lastTimestamp").as_str().or(first);
        let mut count = field(object, "count").as_i64().unwrap_or(0);
        if series.is_object() {
            last = series["lastObservedTime"].as_str().or(last);
            count = series["count"].as_i64().unwrap_or(count);
        } else if count == 0 {
            count = 1;
        }
        let source = field(object, "source");
        let mut origin = text(&source["component"]).to_owned();
        if origin.is_empty() {
            text(field(object, "reportingComponent")).clone_into(&mut origin);
        }
        if !text(&source["host"]).is_empty() {
            origin = format!("{origin}, {}", text(&source["host"]));
        }
        let kind = text(&involved["kind"]).to_lowercase();
        let name = text(&involved["name"]);
        vec![
            table::since(last, now).into(),
            text(&object["type"]).into(),
            text(&object["reason"]).into(),
            if kind.is_empty() && name.is_empty() {
                "".into()
            } else {
                format!("{kind}/{name}").into()
            },
            text(&involved["fieldPath"]).into(),
            origin.into(),
            text(field(object, "message")).trim().into(),
            table::since(first, now).into(),
            count.into(),
            table::name(object),
        ]
    }
}

/// Whether a map has any of the names of one version only.
#[cfg(test)]
fn has_any(fields: &serde_json::Map<String, Value>, core: bool) -> bool {
    NAMES
        .iter()
        .any(|(old, new)| fields.contains_key(if core { *old } else { *new }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::gvk;

    #[test]
    fn conversion_there_and_back_is_the_identity() {
        let event = json!({ "involvedObject": { "kind": "Pod", "name": "p" }, "message": "m", "count": 3, "reason": "r" });
        let mut converted = event.clone();
        convert_event(&mut converted, &gvk("events.k8s.io/v1", "Event"));
        assert!(!has_any(converted.as_object().expect("an object"), true));
        assert_eq!(converted["note"], "m");
        convert_event(&mut converted, &gvk("v1", "Event"));
        assert_eq!(converted, event);
    }
}
