//! Validation of a definition's spec: group, names, versions as a whole, conversion, approval.
//!
//! Source: apiextensions-apiserver, `apis/apiextensions/validation/validation.go`. What all versions have in common
//! (schemas, subresources, columns, selectable fields) is checked once, and named as if it stood outside of the versions:
//! the type that upstream validates keeps it there.

use std::collections::HashSet;

use serde_json::Value;

use super::{formats, version};
use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::validation::{Errors, dns_1035_label, items, subdomain};

/// Mistakes in the spec of a definition.
pub fn check(spec: &Value, errors: &mut Errors) {
    let group = text(&spec["group"]);
    let wrong = subdomain(group);
    if group.is_empty() {
        errors.required("spec.group", "");
    } else if !wrong.is_empty() {
        errors.add("spec.group", &group.into(), &wrong.join(","));
    } else if !group.contains('.') {
        let detail = "should be a domain with at least one dot";
        errors.add("spec.group", &group.into(), detail);
    }
    match text(&spec["scope"]) {
        "" => errors.required("spec.scope", ""),
        _ => errors.one_of("spec.scope", &spec["scope"], &["Cluster", "Namespaced"]),
    }
    if spec["preserveUnknownFields"] == true {
        let detail = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.add("spec.preserveUnknownFields", &true.into(), detail);
    }
    let versions = &spec["versions"];
    let common = |field: &str| {
        let first = &versions[0][field];
        !first.is_null() && items(versions).all(|(_, version)| version[field] == *first)
    };
    for (index, version) in items(versions) {
        if version["schema"]["openAPIV3Schema"].is_null() {
            let at = format!("spec.versions[{index}].schema.openAPIV3Schema");
            errors.required(at, "schemas are required");
        }
    }
    check_versions(versions, errors);
    for (index, version) in items(versions) {
        version::check(version, index, &common, versions, errors);
    }
    for field in ["plural", "singular", "kind", "listKind"] {
        if text(&spec["names"][field]).is_empty() {
            errors.required(format!("spec.names.{field}"), "");
        }
    }
    check_names(&spec["names"], "spec.names", errors);
    check_conversion(&spec["conversion"], errors);
}

fn check_versions(versions: &Value, errors: &mut Errors) {
    let mut seen = HashSet::new();
    let mut unique = true;
    for (index, version) in items(versions) {
        let name = text(&version["name"]);
        unique &= seen.insert(name);
        let wrong = dns_1035_label(name);
        if !wrong.is_empty() {
            let at = format!("spec.versions[{index}].name");
            errors.add(at, &name.into(), &wrong.join(","));
        }
    }
    if !unique {
        errors.add(
            "spec.versions",
            versions,
            "must contain unique version names",
        );
    }
    let storage = items(versions).filter(|(_, version)| version["storage"] == true);
    if storage.count() != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.add("spec.versions", versions, detail);
    }
}

/// Mistakes in the names of a kind, wanted or accepted.
pub fn check_names(names: &Value, path: &str, errors: &mut Errors) {
    let mut label = |at: String, name: &str, label: &str, hint: &str| {
        let wrong = dns_1035_label(label);
        if !name.is_empty() && !wrong.is_empty() {
            errors.add(at, &name.into(), &format!("{hint}{}", wrong.join(",")));
        }
    };
    for field in ["plural", "singular"] {
        let name = text(&names[field]);
        label(format!("{path}.{field}"), name, name, "");
    }
    for field in ["kind", "listKind"] {
        let name = text(&names[field]);
        let hint = "may have mixed case, but should otherwise match: ";
        label(format!("{path}.{field}"), name, &name.to_lowercase(), hint);
    }
    for field in ["shortNames", "categories"] {
        for (index, name) in items(&names[field]) {
            let wrong = dns_1035_label(text(name));
            if !wrong.is_empty() {
                errors.add(format!("{path}.{field}[{index}]"), name, &wrong.join(","));
            }
        }
    }
    let kind = text(&names["kind"]);
    if !kind.is_empty() && names["listKind"] == kind {
        let detail = "kind and listKind may not be the same";
        errors.add(format!("{path}.listKind"), &names["listKind"], detail);
    }
}

fn check_conversion(conversion: &Value, errors: &mut Errors) {
    const PATH: &str = "spec.conversion";
    if conversion.is_null() {
        return;
    }
    let strategy = &conversion["strategy"];
    if text(strategy).is_empty() {
        errors.required(format!("{PATH}.strategy"), "");
    } else {
        errors.one_of(format!("{PATH}.strategy"), strategy, &["None", "Webhook"]);
    }
    let (config, reviews) = (
        &conversion["webhook"]["clientConfig"],
        &conversion["webhook"]["conversionReviewVersions"],
    );
    let config_at = format!("{PATH}.webhookClientConfig");
    let reviews_at = format!("{PATH}.conversionReviewVersions");
    if strategy != "Webhook" {
        let detail = "should not be set when strategy is not set to Webhook";
        if !config.is_null() {
            errors.0.push(FieldError::forbidden(config_at, detail));
        }
        if items(reviews).next().is_some() {
            errors.0.push(FieldError::forbidden(reviews_at, detail));
        }
        return;
    }
    if config.is_null() {
        errors.required(config_at, "required when strategy is set to Webhook");
    } else if config["url"].is_null() == config["service"].is_null() {
        errors.required(config_at, "exactly one of url or service is required");
    } else if let Some(url) = config["url"].as_str() {
        if !url.starts_with("https://") {
            let detail =
                "'https' is the only allowed URL scheme; desired format: https://host[/path]";
            errors.add(format!("{config_at}.url"), &url.into(), detail);
        }
    } else {
        for field in ["name", "namespace"] {
            if text(&config["service"][field]).is_empty() {
                let detail = format!("service {field} is required");
                errors.required(format!("{config_at}.service.{field}"), &detail);
            }
        }
    }
    check_reviews(reviews, &reviews_at, errors);
}

fn check_reviews(reviews: &Value, at: &str, errors: &mut Errors) {
    if items(reviews).next().is_none() {
        errors.required(at, "");
        return;
    }
    let mut seen = HashSet::new();
    for (index, version) in items(reviews) {
        let at = format!("{at}[{index}]");
        if seen.insert(text(version)) {
            errors.invalid(&at, text(version), dns_1035_label(text(version)));
        } else {
            errors.add(at, version, "duplicate version");
        }
    }
    if !items(reviews).any(|(_, version)| version == "v1" || version == "v1beta1") {
        errors.add(at, reviews, "must include at least one of v1, v1beta1");
    }
}

/// The annotation without which a group of Kubernetes' own may not be defined.
pub const APPROVAL: &str = "api-approved.kubernetes.io";

/// Whether a group is Kubernetes' own.
pub fn is_protected(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"].iter().any(|own| {
        group == *own
            || group
                .strip_suffix(own)
                .is_some_and(|rest| rest.ends_with('.'))
    })
}

/// Mistakes in the approval of a definition in a group of Kubernetes' own.
pub fn check_approval(crd: &Value, errors: &mut Errors) {
    if !is_protected(text(&crd["spec"]["group"])) {
        return;
    }
    let at = format!("metadata.annotations[{APPROVAL}]");
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    let approval = text(&crd["metadata"]["annotations"][APPROVAL]);
    if approval.is_empty() {
        errors.required(
            at,
            &format!("protected groups must have approval annotation {APPROVAL:?}, {see}"),
        );
    } else if !approval.starts_with("unapproved") && !is_approved(approval) {
        let detail = format!(
            "protected groups must have approval annotation {APPROVAL:?} with either a URL or a reason starting with \"unapproved\", {see}"
        );
        errors.add(at, &approval.into(), &detail);
    }
}

/// Whether an approval names the page where it was given.
pub fn is_approved(approval: &str) -> bool {
    super::cel::url::parse(approval)
        .is_some_and(|url| !url.scheme.is_empty() && !url.host.is_empty())
}

/// The formats in a definition's schemas that nobody checks.
pub fn unknown_formats(crd: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for (_, version) in items(&crd["spec"]["versions"]) {
        collect(&version["schema"]["openAPIV3Schema"], &mut found);
    }
    found.dedup();
    found
}

fn collect(schema: &Value, found: &mut Vec<String>) {
    let format = text(&schema["format"]);
    if !format.is_empty() && !formats::is_known(format) && !found.iter().any(|f| f == format) {
        found.push(format.to_owned());
    }
    for field in ["items", "additionalProperties", "not"] {
        if schema[field].is_object() {
            collect(&schema[field], found);
        }
    }
    for field in ["allOf", "anyOf", "oneOf"] {
        items(&schema[field]).for_each(|(_, schema)| collect(schema, found));
    }
    for (_, field) in schema["properties"].as_object().into_iter().flatten() {
        collect(field, found);
    }
}
