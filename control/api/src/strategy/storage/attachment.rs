//! Volumes that shall be attached to nodes.

use serde_json::{Value, json};

use super::volume;
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::{self, text};
use crate::strategy::fields::driver_name;
use crate::strategy::validation::{Errors, subdomain};
use crate::strategy::{Column, Context, Strategy};
use crate::table;

/// Volumes that shall be attached to nodes.
pub struct VolumeAttachment;

/// The longest metadata of an attachment, and the longest message of an error.
const LONGEST_METADATA: usize = 256 * 1024;
const LONGEST_MESSAGE: usize = 1024;

fn source(errors: &mut Errors, source: &Value) {
    let at = "spec.source";
    let (inline, name) = (&source["inlineVolumeSpec"], &source["persistentVolumeName"]);
    let one = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (inline.is_null(), name.is_null()) {
        (true, true) => errors.required(at, one),
        (false, false) => errors.0.push(FieldError::forbidden(at, one)),
        (true, false) => match text(name) {
            "" => {
                let at = format!("{at}.persistentVolumeName");
                errors.required(at, "must specify non empty persistentVolumeName");
            }
            name => errors.invalid(&format!("{at}.persistentVolumeName"), name, subdomain(name)),
        },
        (false, true) => {
            volume::validate_spec(errors, &format!("{at}.inlineVolumeSpec"), inline, true);
        }
    }
}

fn status(errors: &mut Errors, status: &Value) {
    let metadata = status["attachmentMetadata"]
        .as_object()
        .into_iter()
        .flatten();
    let size: usize = metadata
        .map(|(key, value)| key.len() + text(value).len())
        .sum();
    let too_long = |at: String| FieldError::too_long(at, LONGEST_METADATA, "bytes");
    if size > LONGEST_METADATA {
        errors
            .0
            .push(too_long("status.attachmentMetadata".to_owned()));
    }
    for field in ["attachError", "detachError"] {
        let error = &status[field];
        if text(&error["message"]).len() > LONGEST_MESSAGE {
            // kube-apiserver names the limit of the metadata here, too.
            errors.0.push(too_long(format!("status.{field}.message")));
        }
        if error["errorCode"].as_i64().is_some_and(|code| code < 0) {
            let detail = "must be between 0 and 2147483647, inclusive";
            errors.add(
                format!("status.{field}.errorCode"),
                &error["errorCode"],
                detail,
            );
        }
    }
}

impl Strategy for VolumeAttachment {
    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        object["status"] = json!({ "attached": false });
    }

    fn prepare_for_update(
        &self,
        _: &Context,
        sub: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        common::split_update(sub, object, old, false);
    }

    fn require_resource_version(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = &object["spec"];
        driver_name(&mut errors, "spec.attacher", &spec["attacher"]);
        source(&mut errors, &spec["source"]);
        let node = text(&spec["nodeName"]);
        errors.invalid("spec.nodeName", node, subdomain(node));
        status(&mut errors, &object["status"]);
        errors.0
    }

    fn validate_update(
        &self,
        _: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        let mut errors = Errors(self.validate(object));
        errors.immutable("spec", &object["spec"], &old["spec"]);
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        let mut columns = table::columns("Name Attacher PV Node Attached? Age");
        columns[1].format = "name".to_owned();
        columns
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let spec = &object["spec"];
        vec![
            table::name(object),
            text(&spec["attacher"]).into(),
            text(&spec["source"]["persistentVolumeName"]).into(),
            text(&spec["nodeName"]).into(),
            (object["status"]["attached"] == true).into(),
            table::age(object, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::fields::tests::{check_new, check_update};

    fn attachment() -> Value {
        json!({ "spec": { "attacher": "csi.example.com", "nodeName": "a", "source": { "persistentVolumeName": "pv" } } })
    }

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn an_attachment_names_a_driver_a_volume_and_a_node() {
        let one = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
        check_new(&VolumeAttachment, &attachment(), &[
            ("/spec/attacher", Value::Null, &["spec.attacher: Required value"]),
            ("/spec/source", json!({}), &[&format!("spec.source: Required value: {one}")]),
            ("/spec/source/inlineVolumeSpec", json!({}), &[&format!("spec.source: Forbidden: {one}")]),
            ("/spec/source/persistentVolumeName", json!(""), &["spec.source.persistentVolumeName: Required value: must specify non empty persistentVolumeName"]),
            ("/spec/source", json!({ "inlineVolumeSpec": { "accessModes": ["ReadWriteOnce"], "csi": { "driver": "a" } } }), &["spec.source.inlineVolumeSpec.csi.volumeHandle: Required value"]),
            ("/status", json!({ "attachError": { "message": "a".repeat(1025) } }), &["status.attachError.message: Too long: may not be more than 262144 bytes"]),
            ("/status", json!({ "detachError": { "errorCode": -1 } }), &["status.detachError.errorCode: Invalid value: -1: must be between 0 and 2147483647, inclusive"]),
        ]);
    }

    #[test]
    fn the_spec_of_an_attachment_stays() {
        let wanted = "spec: Invalid value: {\"attacher\":\"csi.example.com\",\"nodeName\":\"b\",\"source\":{\"persistentVolumeName\":\"pv\"}}: field is immutable";
        check_update(
            &VolumeAttachment,
            &attachment(),
            &[("/spec/nodeName", json!("b"), &[wanted])],
        );
    }
}
