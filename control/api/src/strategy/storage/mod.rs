//! Persistent volumes, claims to them, their classes, and what CSI drivers say of themselves.

mod attachment;
mod claim;
mod class;
mod csi;
mod source;
mod volume;

use serde_json::Value;

pub use attachment::VolumeAttachment;
pub use claim::PersistentVolumeClaim;
pub use class::{StorageClass, VolumeAttributesClass};
pub use csi::{CsiDriver, CsiNode, CsiStorageCapacity};
pub use volume::PersistentVolume;

use super::common::text;
use super::validation::{Errors, items};
use crate::status::FieldError;

/// The annotation that named the class of a volume or claim before `storageClassName` did.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

const ACCESS_MODES: &[(&str, &str)] = &[
    ("ReadWriteOnce", "RWO"),
    ("ReadOnlyMany", "ROX"),
    ("ReadWriteMany", "RWX"),
    ("ReadWriteOncePod", "RWOP"),
];

/// Mistakes in access modes; `detail` says what is missing if there are none.
fn access_modes(errors: &mut Errors, at: &str, modes: &Value, detail: &str) {
    const SORTED: &[&str] = &[
        "ReadOnlyMany",
        "ReadWriteMany",
        "ReadWriteOnce",
        "ReadWriteOncePod",
    ];
    if items(modes).next().is_none() {
        errors.required(at, detail);
    }
    for (_, mode) in items(modes) {
        errors.one_of(at, mode, SORTED);
    }
    let exclusive = |mode: &Value| mode == "ReadWriteOncePod";
    let shared = |mode: &Value| !exclusive(mode) && SORTED.contains(&text(mode));
    if items(modes).any(|(_, mode)| exclusive(mode)) && items(modes).any(|(_, mode)| shared(mode)) {
        let detail = "may not use ReadWriteOncePod with other access modes";
        errors.0.push(FieldError::forbidden(at, detail));
    }
}

/// Access modes as kubectl shows them: `RWO,ROX`, each once, in Kubernetes' order.
fn modes_text(modes: &Value) -> String {
    let has = |name: &str| items(modes).any(|(_, mode)| mode == name);
    let shown: Vec<&str> = ACCESS_MODES
        .iter()
        .filter(|(name, _)| has(name))
        .map(|(_, short)| *short)
        .collect();
    shown.join(",")
}

/// The class of a volume or claim; the annotation of old comes first.
fn class_name(object: &Value) -> &str {
    match object["metadata"]["annotations"].get(CLASS_ANNOTATION) {
        Some(class) => text(class),
        None => text(&object["spec"]["storageClassName"]),
    }
}

/// A text, or `<unset>` where there is none.
fn or_unset(value: &Value) -> &str {
    value.as_str().unwrap_or("<unset>")
}

/// The phase that tables show: `Terminating` once the object is deleted.
fn phase(object: &Value) -> &str {
    if object["metadata"]["deletionTimestamp"].is_null() {
        text(&object["status"]["phase"])
    } else {
        "Terminating"
    }
}

/// A quantity in billionths of its unit; zero where there is none.
fn nano(amount: &Value) -> i128 {
    let amount = text(amount).parse::<knarr_quantity::Quantity>();
    amount.map_or(0, knarr_quantity::Quantity::nano)
}

/// The warning about the annotation of old.
fn annotation_warning(object: &Value) -> Option<String> {
    object["metadata"]["annotations"].get(CLASS_ANNOTATION)?;
    Some(format!(
        "metadata.annotations[{CLASS_ANNOTATION}]: deprecated since v1.8; use \"storageClassName\" attribute instead"
    ))
}
