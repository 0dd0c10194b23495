//! `metadata`: what the server sets, and what may not be or may not change (apimachinery `api/validation/objectmeta.go`,
//! apiserver `registry/rest/{create,update}.go`).

use rand::Rng as _;
use serde_json::{Map, Value, json};

use super::names;
use crate::resource::{Resource, Scope};
use crate::status::{ApiError, FieldError};
use crate::strategy::validation::{finalizer_name, qualified_name};

/// The letters of generated names: no vowels, so that no words come out.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// The longest base of a generated name.
const MAX_BASE: usize = 58;
/// All annotations together, keys and values.
const MAX_ANNOTATIONS: usize = 256 << 10;

/// Now, as timestamps of the API are written.
pub fn now() -> String {
    timestamp(jiff::Timestamp::now())
}

/// A time in whole seconds, RFC 3339.
pub fn timestamp(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A string field of `metadata`; empty if it is not there.
pub fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// The finalizers.
pub fn finalizers(object: &Value) -> Vec<&str> {
    object["metadata"]["finalizers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// Replaces the finalizers.
pub fn set_finalizers(object: &mut Value, finalizers: &[String]) {
    if finalizers.is_empty() {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("finalizers");
        }
    } else {
        object["metadata"]["finalizers"] = json!(finalizers);
    }
}

/// Whether the object is being deleted.
pub fn is_terminating(object: &Value) -> bool {
    !text(object, "deletionTimestamp").is_empty()
}

/// The metadata, made if it is not there.
pub fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    object["metadata"]
        .as_object_mut()
        .expect("it was just made an object")
}

/// Gives a new object its namespace, name, uid and time.
///
/// # Errors
///
/// 400 for another namespace than the request's, or a resourceVersion.
pub fn prepare_new(
    resource: &Resource,
    namespace: &str,
    now: &str,
    object: &mut Value,
) -> Result<(), ApiError> {
    let metadata = metadata(object);
    if metadata
        .get("resourceVersion")
        .and_then(Value::as_str)
        .is_some_and(|v| !v.is_empty())
    {
        return Err(ApiError::new(
            500,
            "",
            "resourceVersion should not be set on objects to be created",
        ));
    }
    set_namespace(resource, namespace, metadata)?;
    let is_empty = |metadata: &Map<String, Value>, field| {
        metadata
            .get(field)
            .and_then(Value::as_str)
            .is_none_or(str::is_empty)
    };
    if is_empty(metadata, "name") && !is_empty(metadata, "generateName") {
        let base = metadata["generateName"].as_str().unwrap_or_default();
        let name = generate_name(base);
        metadata.insert("name".to_owned(), name.into());
    }
    for field in [
        "resourceVersion",
        "selfLink",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        metadata.remove(field);
    }
    metadata.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".to_owned(), now.into());
    Ok(())
}

fn set_namespace(
    resource: &Resource,
    namespace: &str,
    metadata: &mut Map<String, Value>,
) -> Result<(), ApiError> {
    let own = metadata
        .get("namespace")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if resource.scope == Scope::Cluster {
        metadata.remove("namespace");
        return Ok(());
    }
    if !own.is_empty() && own != namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    metadata.insert("namespace".to_owned(), namespace.into());
    Ok(())
}

/// `base` and five random letters.
pub fn generate_name(base: &str) -> String {
    let mut end = base.len().min(MAX_BASE);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut rng = rand::rng();
    let mut name = base[..end].to_owned();
    name.extend((0..5).map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())])));
    name
}

/// Mistakes in the metadata of any object.
pub fn validate(resource: &Resource, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let metadata = &object["metadata"];
    let generate = text(object, "generateName");
    if !generate.is_empty()
        && let Err(detail) = resource.strategy.check_name(generate.trim_end_matches('-'))
    {
        errors.push(FieldError::invalid(
            "metadata.generateName",
            &metadata["generateName"],
            &detail,
        ));
    }
    let name = text(object, "name");
    if name.is_empty() {
        errors.push(FieldError::required(
            "metadata.name",
            "name or generateName is required",
        ));
    } else if let Err(detail) = resource.strategy.check_name(name) {
        errors.push(FieldError::invalid(
            "metadata.name",
            &metadata["name"],
            &detail,
        ));
    }
    let namespace = text(object, "namespace");
    if resource.scope == Scope::Namespaced {
        if namespace.is_empty() {
            errors.push(FieldError::required("metadata.namespace", ""));
        } else if let Err(detail) = names::dns_label(namespace) {
            errors.push(FieldError::invalid(
                "metadata.namespace",
                &metadata["namespace"],
                &detail,
            ));
        }
    }
    validate_labels(&metadata["labels"], "metadata.labels", &mut errors);
    validate_annotations(&metadata["annotations"], &mut errors);
    let finalizers = finalizers(object);
    for finalizer in &finalizers {
        let wrong = match resource.strategy.has_plain_finalizers() {
            true => qualified_name(finalizer),
            false => finalizer_name(finalizer),
        };
        errors.extend(wrong.iter().map(|detail| {
            FieldError::invalid("metadata.finalizers", &(*finalizer).into(), detail)
        }));
    }
    if finalizers.contains(&"orphan") && finalizers.contains(&"foregroundDeletion") {
        errors.push(FieldError::invalid(
            "metadata.finalizers",
            &metadata["finalizers"],
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
    validate_owners(&metadata["ownerReferences"], &mut errors);
    errors
}

fn validate_labels(labels: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        if let Err(detail) = names::label_key(key) {
            errors.push(FieldError::invalid(path, &key.as_str().into(), &detail));
        }
        if let Err(detail) = names::label_value(value.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(path, value, &detail));
        }
    }
}

fn validate_annotations(annotations: &Value, errors: &mut Vec<FieldError>) {
    let mut total = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        total += key.len() + value.as_str().map_or(0, str::len);
        if let Err(detail) = names::label_key(&key.to_lowercase()) {
            errors.push(FieldError::invalid(
                "metadata.annotations",
                &key.as_str().into(),
                &detail,
            ));
        }
    }
    if total > MAX_ANNOTATIONS {
        errors.push(FieldError::too_long(
            "metadata.annotations",
            MAX_ANNOTATIONS,
            "bytes",
        ));
    }
}

fn validate_owners(owners: &Value, errors: &mut Vec<FieldError>) {
    let mut controller: Option<&Value> = None;
    for (index, owner) in owners.as_array().into_iter().flatten().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().is_none_or(str::is_empty) {
                let detail = if field == "apiVersion" {
                    "version must not be empty"
                } else {
                    "must not be empty"
                };
                let path = format!("metadata.ownerReferences[{index}].{field}");
                errors.push(FieldError::invalid(
                    path,
                    &owner[field].as_str().unwrap_or_default().into(),
                    detail,
                ));
            }
        }
        if owner["controller"] == true {
            if let Some(first) = controller {
                let text = |o: &Value, f: &str| o[f].as_str().unwrap_or_default().to_owned();
                errors.push(FieldError::invalid(
                    "metadata.ownerReferences",
                    owners,
                    &format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {}/{} and {}/{}",
                        text(first, "kind"), text(first, "name"), text(owner, "kind"), text(owner, "name"),
                    ),
                ));
            }
            controller = Some(owner);
        }
    }
}

/// Carries over what an update may not touch. `old` is the present object.
pub fn prepare_changed(object: &mut Value, old: &Value) {
    let metadata = metadata(object);
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generateName",
        "generation",
    ] {
        match old["metadata"].get(field) {
            Some(value) => metadata.insert(field.to_owned(), value.clone()),
            None => metadata.remove(field),
        };
    }
    metadata.remove("selfLink");
}

/// Drops owners that stand there twice; the warning about them.
pub fn drop_repeated_owners(object: &mut Value) -> Option<String> {
    let owners = object["metadata"]
        .get_mut("ownerReferences")?
        .as_array_mut()?;
    let mut kept: Vec<Value> = Vec::with_capacity(owners.len());
    let mut repeated = Vec::new();
    for owner in std::mem::take(owners) {
        if kept.contains(&owner) {
            repeated.push(owner["uid"].as_str().unwrap_or_default().to_owned());
        } else {
            kept.push(owner);
        }
    }
    *owners = kept;
    (!repeated.is_empty()).then(|| {
        format!(
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            repeated.join(", ")
        )
    })
}

/// Mistakes in what an update changed of the metadata.
pub fn validate_changed(object: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if is_terminating(old) {
        let before = finalizers(old);
        let added: Vec<_> = finalizers(object)
            .into_iter()
            .filter(|f| !before.contains(f))
            .collect();
        if !added.is_empty() {
            let list = added
                .iter()
                .map(|f| format!("{f:?}"))
                .collect::<Vec<_>>()
                .join(", ");
            errors.push(FieldError::forbidden(
                "metadata.finalizers",
                &format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{list}}}"
                ),
            ));
        }
    }
    errors
}
