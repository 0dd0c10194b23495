//! The claims of volumes that a stateful set makes for its pods.

use knarr_quantity::Quantity;
use serde_json::Value;

use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::validation::{Errors, items, label_selector, subdomain};

/// Mistakes in the spec of a claim; `at` is its path.
pub(super) fn validate(errors: &mut Errors, at: &str, spec: &Value) {
    let modes = &spec["accessModes"];
    if items(modes).next().is_none() {
        errors.required(
            format!("{at}.accessModes"),
            "at least 1 access mode is required",
        );
    }
    for (_, mode) in items(modes) {
        let known = [
            "ReadOnlyMany",
            "ReadWriteMany",
            "ReadWriteOnce",
            "ReadWriteOncePod",
        ];
        errors.one_of(format!("{at}.accessModes"), mode, &known);
    }
    if items(modes).count() > 1 && items(modes).any(|(_, mode)| mode == "ReadWriteOncePod") {
        errors.0.push(FieldError::forbidden(
            format!("{at}.accessModes"),
            "may not use ReadWriteOncePod with other access modes",
        ));
    }
    if !spec["selector"].is_null() {
        label_selector(errors, &format!("{at}.selector"), &spec["selector"]);
    }
    let storage = &spec["resources"]["requests"]["storage"];
    if storage.is_null() {
        errors.required(format!("{at}.resources[storage]"), "");
    } else if text(storage)
        .parse::<Quantity>()
        .is_ok_and(|size| size.nano() <= 0)
    {
        errors.add(
            format!("{at}.resources[storage]"),
            storage,
            "must be greater than zero",
        );
    }
    let class = text(&spec["storageClassName"]);
    if !class.is_empty() {
        errors.invalid(&format!("{at}.storageClassName"), class, subdomain(class));
    }
    if !spec["volumeMode"].is_null() {
        let known = ["Block", "Filesystem"];
        errors.one_of(format!("{at}.volumeMode"), &spec["volumeMode"], &known);
    }
}
