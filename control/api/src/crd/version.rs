//! Validation of one version of a definition: schema, subresources, columns, selectable fields.
//!
//! Source: apiextensions-apiserver, `apis/apiextensions/validation/validation.go`.

use std::collections::HashSet;

use serde_json::Value;

use super::field_path;
use super::structural::{Kind, Structural};
use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::validation::{Errors, items};

/// How many selectable fields a version may have.
const MAX_SELECTABLE: usize = 8;

/// The keywords that may stand at the root of a schema whose status is a subresource, with the names that the message uses.
const AT_ROOT: [(&str, &str); 22] = [
    ("description", "Description"),
    ("type", "Type"),
    ("format", "Format"),
    ("title", "Title"),
    ("maximum", "Maximum"),
    ("exclusiveMaximum", "ExclusiveMaximum"),
    ("minimum", "Minimum"),
    ("exclusiveMinimum", "ExclusiveMinimum"),
    ("maxLength", "MaxLength"),
    ("minLength", "MinLength"),
    ("pattern", "Pattern"),
    ("maxItems", "MaxItems"),
    ("minItems", "MinItems"),
    ("uniqueItems", "UniqueItems"),
    ("multipleOf", "MultipleOf"),
    ("required", "Required"),
    ("items", "Items"),
    ("properties", "Properties"),
    ("externalDocs", "ExternalDocs"),
    ("example", "Example"),
    (
        "x-kubernetes-preserve-unknown-fields",
        "XPreserveUnknownFields",
    ),
    ("x-kubernetes-validations", "XValidations"),
];

/// Mistakes in one version of a definition; `common` says whether all versions have a field in common.
pub fn check(
    version: &Value,
    index: usize,
    common: &dyn Fn(&str) -> bool,
    versions: &Value,
    errors: &mut Errors,
) {
    let own = format!("spec.versions[{index}]");
    // What the versions have in common is looked at with the first one.
    let path = |field: &str, outside: &str| match (common(field), index) {
        (false, _) => Some(format!("{own}.{field}")),
        (true, 0) => Some(format!("spec.{outside}")),
        (true, _) => None,
    };
    check_deprecation(version, &own, errors);
    let status = |version: &Value| !version["subresources"]["status"].is_null();
    let has_status = if common("schema") {
        items(versions).any(|(_, version)| status(version))
    } else {
        status(version)
    };
    let schema = &version["schema"]["openAPIV3Schema"];
    let mut structural = None;
    if let Some(at) = path("schema", "validation") {
        let at = format!("{at}.openAPIV3Schema");
        if !schema.is_null() {
            if has_status {
                check_root(schema, &at, errors);
            }
            match super::parse(schema, &at) {
                Ok(parsed) => structural = Some(parsed),
                Err(mistakes) => errors.0.extend(mistakes),
            }
        }
    }
    if let Some(at) = path("subresources", "subresources") {
        check_scale(&version["subresources"]["scale"], &at, errors);
    }
    if let Some(at) = path("additionalPrinterColumns", "additionalPrinterColumns") {
        for (index, column) in items(&version["additionalPrinterColumns"]) {
            check_column(column, &format!("{at}[{index}]"), errors);
        }
    }
    if let (Some(at), Some(schema)) = (path("selectableFields", "selectableFields"), structural) {
        check_selectable(&version["selectableFields"], &schema, &at, errors);
    }
}

fn check_root(schema: &Value, at: &str, errors: &mut Errors) {
    for (keyword, value) in schema.as_object().into_iter().flatten() {
        if keyword == "type" {
            if value != "object" {
                let detail = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
                errors.add(format!("{at}.type"), value, detail);
            }
        } else if !is_zero(value) && !AT_ROOT.iter().any(|(allowed, _)| allowed == keyword) {
            let names: Vec<&str> = AT_ROOT.iter().map(|(_, name)| *name).collect();
            let detail = format!(
                "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
                names.join(" ")
            );
            errors.add(at, schema, &detail);
            return;
        }
    }
}

/// Whether a keyword says nothing: Go takes it for one that is not there.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

fn check_deprecation(version: &Value, path: &str, errors: &mut Errors) {
    let warning = &version["deprecationWarning"];
    let Some(words) = warning.as_str() else {
        return;
    };
    let mut wrong =
        |detail: &str| errors.add(format!("{path}.deprecationWarning"), warning, detail);
    if version["deprecated"] != true {
        wrong("can only be set for deprecated versions");
        return;
    }
    if words.len() > 256 {
        wrong("must be <= 256 characters long");
    }
    if words.is_empty() {
        wrong("must not be an empty string");
    }
    if let Some((index, _)) = words.char_indices().find(|(_, c)| c.is_control()) {
        wrong(&format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {index}"
        ));
    }
}

fn check_scale(scale: &Value, path: &str, errors: &mut Errors) {
    if scale.is_null() {
        return;
    }
    for (field, prefixes, detail) in [
        (
            "specReplicasPath",
            &[".spec."][..],
            "should be a json path under .spec",
        ),
        (
            "statusReplicasPath",
            &[".status."],
            "should be a json path under .status",
        ),
        (
            "labelSelectorPath",
            &[".spec.", ".status."],
            "should be a json path under either .spec or .status",
        ),
    ] {
        let at = format!("{path}.scale.{field}");
        let value = text(&scale[field]);
        if value.is_empty() {
            if field != "labelSelectorPath" {
                errors.required(at, "");
            }
        } else if !value.starts_with('.') {
            errors.add(
                at,
                &value.into(),
                "must be a simple json path starting with .",
            );
        } else if !prefixes.iter().any(|prefix| value.starts_with(prefix)) {
            errors.add(at, &value.into(), detail);
        }
    }
}

fn check_column(column: &Value, path: &str, errors: &mut Errors) {
    const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
    const FORMATS: [&str; 8] = [
        "byte",
        "date",
        "date-time",
        "double",
        "float",
        "int32",
        "int64",
        "password",
    ];
    if text(&column["name"]).is_empty() {
        errors.required(format!("{path}.name"), "");
    }
    let types = format!("must be one of {}", TYPES.join(","));
    match text(&column["type"]) {
        "" => errors.required(format!("{path}.type"), &types),
        kind if !TYPES.contains(&kind) => {
            errors.add(format!("{path}.type"), &kind.into(), &types);
        }
        _ => {}
    }
    let format = text(&column["format"]);
    if !format.is_empty() && !FORMATS.contains(&format) {
        let detail = format!("must be one of {}", FORMATS.join(","));
        errors.add(format!("{path}.format"), &format.into(), &detail);
    }
    match text(&column["jsonPath"]) {
        "" => errors.required(format!("{path}.JSONPath"), ""),
        at if !at.starts_with('.') => {
            let detail = "must be a simple json path starting with .";
            errors.add(format!("{path}.JSONPath"), &at.into(), detail);
        }
        _ => {}
    }
}

fn check_selectable(fields: &Value, schema: &Structural, path: &str, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (index, field) in items(fields) {
        let at = format!("{path}[{index}].jsonPath");
        let value = text(&field["jsonPath"]);
        if value.is_empty() {
            errors.required(at, "");
            continue;
        }
        let (parts, found) = match field_path::resolve(value, schema, false) {
            Ok(found) => found,
            Err(reason) => {
                errors.add(at, &value.into(), &format!("is an invalid path: {reason}"));
                continue;
            }
        };
        if parts.first().is_some_and(|part| part == "metadata") {
            errors.add(&at, &value.into(), "must not point to fields in metadata");
        }
        if !matches!(
            found.kind,
            Some(Kind::String | Kind::Boolean | Kind::Integer)
        ) {
            let detail = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
            errors.add(&at, &value.into(), detail);
        }
        if !seen.insert(parts) {
            errors.0.push(FieldError::duplicate(at, &value.into()));
        }
    }
    if seen.len() > MAX_SELECTABLE {
        let error = FieldError::too_many(path, seen.len(), MAX_SELECTABLE);
        errors.0.push(error);
    }
}
