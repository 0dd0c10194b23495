//! What a schema of a custom resource may say: whether it is structural, and whether its keywords go together.
//!
//! Sources: apiextensions-apiserver, `apiserver/schema/{validation,complete}.go` for [`structural`] and
//! `apis/apiextensions/validation/validation.go` for [`keywords`].

use super::structural::{Additional, Kind, Structural, Values};
use crate::status::FieldError;

/// Where a schema stands in the one around it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Why a schema is not structural: types are missing, or a junctor says more than it may.
pub fn structural(schema: &Structural, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    invariants(schema, Level::Root, path, &mut errors);
    complete(schema, path, &mut errors);
    errors.sort_by(|a, b| (&a.field, &a.message).cmp(&(&b.field, &b.message)));
    errors
}

fn invariants(schema: &Structural, level: Level, path: &str, out: &mut Vec<FieldError>) {
    let at = |field: &str| format!("{path}.{field}");
    if schema.kind == Some(Kind::Array) && schema.items.is_none() {
        out.push(FieldError::required(at("items"), "must be specified"));
    }
    if let Some(items) = &schema.items {
        invariants(items, Level::Item, &at("items"), out);
    }
    for (name, field) in &schema.properties {
        let path = format!("{path}.properties[{name}]");
        invariants(field, Level::Field, &path, out);
    }
    if let Some(additional) = &schema.additional {
        let path = at("additionalProperties");
        if level == Level::Root {
            out.push(FieldError::forbidden(&path, "must not be used at the root"));
        }
        if let Additional::Schema(values) = additional {
            invariants(values, Level::Field, &path, out);
        }
    }
    for (there, keyword) in [
        (schema.preserves(), "x-kubernetes-preserve-unknown-fields"),
        (schema.embedded, "x-kubernetes-embedded-resource"),
    ] {
        if schema.int_or_string && there {
            let detail = "must be false if x-kubernetes-int-or-string is true";
            out.push(FieldError::invalid(at(keyword), &true.into(), detail));
        }
    }
    let exempt = IntOrString::of(&schema.values);
    values(&schema.values, exempt, path, out);
    types(schema, level, path, out);
    metadata(schema, level, path, out);
}

fn types(schema: &Structural, level: Level, path: &str, out: &mut Vec<FieldError>) {
    let at = |field: &str| format!("{path}.{field}");
    let name = schema.type_name();
    if schema.embedded && schema.kind != Some(Kind::Object) {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        out.push(required_or_invalid(&at("type"), name, detail));
    } else if schema.kind.is_none() && !schema.int_or_string && !schema.preserves() {
        let detail = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        out.push(FieldError::required(at("type"), detail));
    }
    if schema.embedded && schema.additional.is_some() {
        let detail = "must not be used if x-kubernetes-embedded-resource is set";
        out.push(FieldError::forbidden(at("additionalProperties"), detail));
    }
    if level == Level::Root && schema.kind.is_some_and(|kind| kind != Kind::Object) {
        let detail = "must be object at the root";
        out.push(FieldError::invalid(at("type"), &name.into(), detail));
    }
    if schema.embedded && !schema.preserves() && schema.properties.is_empty() {
        let detail = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        out.push(FieldError::required(at("properties"), detail));
    }
}

/// What a resource's own `kind`, `apiVersion` and `metadata` may be said to be.
fn metadata(schema: &Structural, level: Level, path: &str, out: &mut Vec<FieldError>) {
    let resource = level == Level::Root || schema.embedded;
    let mut wanted = |name: &str, kind: Kind| {
        let field = schema.properties.get(name)?;
        if resource && field.kind != Some(kind) {
            let detail = format!("must be {}", kind.as_str());
            let at = format!("{path}.properties[{name}].type");
            out.push(FieldError::invalid(at, &field.type_name().into(), &detail));
        }
        Some(())
    };
    wanted("kind", Kind::String);
    wanted("apiVersion", Kind::String);
    wanted("metadata", Kind::Object);
    let Some(metadata) = schema.properties.get("metadata") else {
        return;
    };
    if level == Level::Root && !is_name_only(metadata) {
        let detail = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        let at = format!("{path}.properties[metadata]");
        out.push(FieldError::forbidden(at, detail));
    }
}

/// Whether a schema of metadata restricts only the name, and says nothing else.
fn is_name_only(metadata: &Structural) -> bool {
    let names = |name: &String| matches!(name.as_str(), "name" | "generateName");
    let rest = Structural {
        kind: None,
        default: None,
        properties: Default::default(),
        ..metadata.clone()
    };
    metadata.properties.keys().all(names) && rest == Structural::default()
}

/// Which junctor spells out "integer or string", and so may name types.
#[derive(Clone, Copy, PartialEq, Eq)]
enum IntOrString {
    No,
    AnyOf,
    FirstAllOf,
}

impl IntOrString {
    fn of(values: &Values) -> Self {
        if is_int_or_string(&values.any_of) {
            Self::AnyOf
        } else if (values.all_of.first()).is_some_and(|s| is_int_or_string(&s.values.any_of)) {
            Self::FirstAllOf
        } else {
            Self::No
        }
    }
}

fn is_int_or_string(branches: &[Structural]) -> bool {
    let only = |schema: &Structural, kind: Kind| {
        let kind = Some(kind);
        *schema
            == Structural {
                kind,
                ..Structural::default()
            }
    };
    matches!(branches, [a, b] if only(a, Kind::Integer) && only(b, Kind::String))
}

fn values(values: &Values, exempt: IntOrString, path: &str, out: &mut Vec<FieldError>) {
    if exempt != IntOrString::AnyOf {
        for (index, schema) in values.any_of.iter().enumerate() {
            let at = format!("{path}.anyOf[{index}]");
            nested(schema, IntOrString::No, &at, out);
        }
    }
    for (index, schema) in values.all_of.iter().enumerate() {
        let exempt = if exempt == IntOrString::FirstAllOf && index == 0 {
            IntOrString::AnyOf
        } else {
            IntOrString::No
        };
        nested(schema, exempt, &format!("{path}.allOf[{index}]"), out);
    }
    for (index, schema) in values.one_of.iter().enumerate() {
        let at = format!("{path}.oneOf[{index}]");
        nested(schema, IntOrString::No, &at, out);
    }
    if let Some(schema) = &values.not {
        nested(schema, IntOrString::No, &format!("{path}.not"), out);
    }
}

/// A schema inside a junctor may judge values; it may not define fields.
#[rustfmt::skip] // A table: one keyword a line.
fn nested(schema: &Structural, exempt: IntOrString, path: &str, out: &mut Vec<FieldError>) {
    values(&schema.values, exempt, path, out);
    if let Some(items) = &schema.items {
        nested(items, IntOrString::No, &format!("{path}.items"), out);
    }
    for (name, field) in &schema.properties {
        nested(field, IntOrString::No, &format!("{path}.properties[{name}]"), out);
    }
    for (there, keyword, detail) in [
        (schema.kind.is_some(), "type", "must be empty to be structural"),
        (schema.additional.is_some(), "additionalProperties", "must be undefined to be structural"),
        (schema.default.is_some(), "default", "must be undefined to be structural"),
        (schema.described, "description", "must be empty to be structural"),
        (schema.nullable, "nullable", "must be false to be structural"),
        (schema.external_docs, "externalDocs", "must be undefined to be structural"),
        (schema.preserves(), "x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
        (schema.embedded, "x-kubernetes-embedded-resource", "must be false to be structural"),
        (schema.int_or_string, "x-kubernetes-int-or-string", "must be false to be structural"),
        (!schema.list_map_keys.is_empty(), "x-kubernetes-list-map-keys", "must be empty to be structural"),
        (schema.list_type.is_some(), "x-kubernetes-list-type", "must be undefined to be structural"),
        (schema.map_type.is_some(), "x-kubernetes-map-type", "must be undefined to be structural"),
        (!schema.rules.is_empty(), "x-kubernetes-validations", "must be empty to be structural"),
        (schema.properties.contains_key("metadata"), "properties[metadata]", "must not be specified in a nested context"),
    ] {
        if there {
            out.push(FieldError::forbidden(format!("{path}.{keyword}"), detail));
        }
    }
}

/// Every field and item that a junctor judges must be defined outside of it.
fn complete(schema: &Structural, path: &str, out: &mut Vec<FieldError>) {
    for (branch, at) in branches(&schema.values, path) {
        defined(branch, Some(schema), path, &at, out);
    }
    if let Some(items) = &schema.items {
        complete(items, &format!("{path}.items"), out);
    }
    for (name, field) in &schema.properties {
        complete(field, &format!("{path}.properties[{name}]"), out);
    }
    if let Some(values) = schema.values_schema() {
        complete(values, &format!("{path}.additionalProperties"), out);
    }
}

fn branches<'a>(values: &'a Values, path: &str) -> Vec<(&'a Structural, String)> {
    let mut all = Vec::new();
    for (name, list) in [
        ("allOf", &values.all_of),
        ("anyOf", &values.any_of),
        ("oneOf", &values.one_of),
    ] {
        for (index, schema) in list.iter().enumerate() {
            all.push((schema, format!("{path}.{name}[{index}]")));
        }
    }
    if let Some(schema) = &values.not {
        all.push((&**schema, format!("{path}.not")));
    }
    all
}

fn defined(
    branch: &Structural,
    schema: Option<&Structural>,
    path: &str,
    branch_path: &str,
    out: &mut Vec<FieldError>,
) {
    for (inner, at) in branches(&branch.values, branch_path) {
        defined(inner, schema, path, &at, out);
    }
    let Some(schema) = schema else { return };
    let mut missing = |at: &str, because: &str| {
        let detail = format!("because it is defined in {because}");
        out.push(FieldError::required(at, &detail));
    };
    if let Some(items) = &branch.items {
        let (at, from) = (format!("{path}.items"), format!("{branch_path}.items"));
        match &schema.items {
            Some(own) => defined(items, Some(own), &at, &from, out),
            None => missing(&at, &from),
        }
    }
    for (name, field) in &branch.properties {
        let suffix = format!(".properties[{name}]");
        let (at, from) = (format!("{path}{suffix}"), format!("{branch_path}{suffix}"));
        match schema.properties.get(name) {
            Some(own) => defined(field, Some(own), &at, &from, out),
            None => out.push(FieldError::required(
                &at,
                &format!("because it is defined in {from}"),
            )),
        }
    }
}

/// What the keywords of a schema forbid each other.
pub fn keywords(schema: &Structural, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let place = Place {
        root: true,
        meta: false,
        no_defaults: None,
    };
    openapi(schema, path, &place, &mut errors);
    errors
}

/// What the schemas around one say about it.
#[derive(Clone)]
struct Place {
    root: bool,
    /// Inside the metadata of a resource.
    meta: bool,
    /// Why defaults are forbidden.
    no_defaults: Option<String>,
}

fn openapi(schema: &Structural, path: &str, place: &Place, out: &mut Vec<FieldError>) {
    let at = |field: &str| format!("{path}.{field}");
    if let (Some(reason), true) = (&place.no_defaults, schema.default.is_some()) {
        let detail = format!("must not be set {reason}");
        out.push(FieldError::forbidden(at("default"), &detail));
    }
    for keyword in &schema.unsupported {
        let detail = if *keyword == "items" {
            "items must be a schema object and not an array".to_owned()
        } else {
            format!("{keyword} is not supported")
        };
        out.push(FieldError::forbidden(at(keyword), &detail));
    }
    if place.meta && schema.embedded {
        let detail = "must not be used inside of resource meta";
        out.push(FieldError::forbidden(
            at("x-kubernetes-embedded-resource"),
            detail,
        ));
    }
    if schema.values.unique_items {
        let detail =
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        out.push(FieldError::forbidden(at("uniqueItems"), detail));
    }
    let place_is_root = place.root;
    let inner = Place {
        root: false,
        ..place.clone()
    };
    if let Some(additional) = &schema.additional {
        if !schema.properties.is_empty() && !matches!(additional, Additional::Allowed(true)) {
            let detail = "additionalProperties and properties are mutual exclusive";
            out.push(FieldError::forbidden(at("additionalProperties"), detail));
        }
        if let Additional::Schema(values) = additional {
            let mut place = inner.clone();
            if place.meta {
                let reason = "inside additionalProperties applying to object metadata";
                place.no_defaults = Some(reason.to_owned());
            }
            openapi(values, &at("additionalProperties"), &place, out);
        }
    }
    for (name, field) in &schema.properties {
        let mut place = inner.clone();
        let own = matches!(name.as_str(), "metadata" | "kind" | "apiVersion");
        if own && (place_is_root || schema.embedded) {
            place.meta = true;
            if place_is_root {
                place.no_defaults = Some(format!("in top-level {name}"));
            }
        }
        openapi(field, &format!("{path}.properties[{name}]"), &place, out);
    }
    for (branch, at) in branches(&schema.values, path) {
        openapi(branch, &at, &inner, out);
    }
    if let Some(items) = &schema.items {
        openapi(items, &at("items"), &inner, out);
    }
    if schema.preserve == Some(false) {
        let detail = "must be true or undefined";
        let at = at("x-kubernetes-preserve-unknown-fields");
        out.push(FieldError::invalid(at, &false.into(), detail));
    }
    super::lists::check(schema, path, out);
    super::cel::check_texts(schema, path, out);
}

/// `Required value` where nothing is said, else `Invalid value`.
pub fn required_or_invalid(at: &str, value: &str, detail: &str) -> FieldError {
    if value.is_empty() {
        FieldError::required(at, detail)
    } else {
        FieldError::invalid(at, &value.into(), detail)
    }
}
