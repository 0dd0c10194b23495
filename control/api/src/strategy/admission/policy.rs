//! Policies that validate or mutate.

use serde_json::Value;

use super::{FAILURE_POLICIES, REINVOCATION_POLICIES, match_conditions, match_resources};
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::{self, text};
use crate::strategy::fields::{count, raise_generation, required_text};
use crate::strategy::validation::{Errors, dns_1035_label, items, qualified_name, subdomain};
use crate::strategy::{Column, Context, Strategy};
use crate::table;

/// Policies in CEL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdmissionPolicy {
    /// They refuse requests, warn, or annotate the audit log.
    Validating,
    /// They change objects.
    Mutating,
}

const MOST_ANNOTATIONS: usize = 20;
const LONGEST_ANNOTATION: usize = 5 * 1024;

const RESERVED: &[&str] = &[
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

fn is_identifier(name: &str) -> bool {
    name.bytes().all(|c| c == b'_' || c.is_ascii_alphanumeric())
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && !RESERVED.contains(&name)
}

impl Strategy for AdmissionPolicy {
    /// Policies that mutate have no status.
    fn has_status(&self) -> bool {
        *self == Self::Validating
    }

    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        if self.has_status() {
            object["status"] = Value::Object(serde_json::Map::new());
        }
        common::first_generation(object);
    }

    fn prepare_for_update(
        &self,
        _: &Context,
        sub: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        if self.has_status() {
            return common::split_update(sub, object, old, true);
        }
        let changed = object["spec"] != old["spec"];
        raise_generation(object, old, changed);
    }

    fn require_resource_version(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = &object["spec"];
        match &spec["failurePolicy"] {
            Value::Null => errors.required("spec.failurePolicy", ""),
            policy => errors.one_of("spec.failurePolicy", policy, FAILURE_POLICIES),
        }
        if !spec["paramKind"].is_null() {
            param_kind(&mut errors, &spec["paramKind"]);
        }
        let matched = &spec["matchConstraints"];
        if matched.is_null() {
            errors.required("spec.matchConstraints", "");
        } else {
            match_resources(&mut errors, "spec.matchConstraints", matched);
            if count(&matched["resourceRules"]) == 0 {
                errors.required("spec.matchConstraints.resourceRules", "");
            }
        }
        match_conditions(
            &mut errors,
            "spec.matchConditions",
            &spec["matchConditions"],
        );
        for (index, variable) in items(&spec["variables"]) {
            let at = format!("spec.variables[{index}]");
            let name = text(&variable["name"]);
            if name.trim().is_empty() {
                errors.required(format!("{at}.name"), "name is not specified");
            } else if !is_identifier(name) {
                errors.add(
                    format!("{at}.name"),
                    &name.into(),
                    "name is not a valid CEL identifier",
                );
            }
            expression(
                &mut errors,
                format!("{at}.expression"),
                &variable["expression"],
            );
        }
        match self {
            Self::Validating => validations(&mut errors, object),
            Self::Mutating => mutations(&mut errors, spec),
        }
        errors.0
    }

    fn validate_update(
        &self,
        sub: Option<Subresource>,
        object: &Value,
        _: &Value,
    ) -> Vec<FieldError> {
        if sub != Some(Subresource::Status) {
            return self.validate(object);
        }
        let mut errors = Errors::default();
        for (index, warning) in items(&object["status"]["typeChecking"]["expressionWarnings"]) {
            for field in ["warning", "fieldRef"] {
                if text(&warning[field]).trim().is_empty() {
                    let at = format!("status.typeChecking.expressionWarnings[{index}].{field}");
                    errors.required(at, "");
                }
            }
        }
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        table::columns(match self {
            Self::Validating => "Name Validations# ParamKind Age",
            Self::Mutating => "Name Mutations# ParamKind Age",
        })
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let (spec, kind) = (&object["spec"], &object["spec"]["paramKind"]);
        let shown = if kind.is_null() {
            "<unset>".to_owned()
        } else {
            format!("{}/{}", text(&kind["apiVersion"]), text(&kind["kind"]))
        };
        let list = match self {
            Self::Validating => "validations",
            Self::Mutating => "mutations",
        };
        vec![
            table::name(object),
            count(&spec[list]).into(),
            shown.into(),
            table::age(object, now),
        ]
    }
}

fn expression(errors: &mut Errors, at: String, value: &Value) {
    if text(value).trim().is_empty() {
        errors.required(at, "expression is not specified");
    }
}

fn param_kind(errors: &mut Errors, kind: &Value) {
    let at = "spec.paramKind.apiVersion";
    let version = text(&kind["apiVersion"]);
    let (group, number) = version.split_once('/').unwrap_or(("", version));
    if version.is_empty() {
        errors.required(at, "");
    } else if number.contains('/') {
        errors.add(
            at,
            &version.into(),
            &format!("unexpected GroupVersion string: {version}"),
        );
    } else {
        let wrong = subdomain(group);
        if !group.is_empty() && !wrong.is_empty() {
            errors.add(at, &group.into(), &wrong.join(","));
        }
        let wrong = dns_1035_label(number);
        if number.is_empty() {
            errors.add(at, &version.into(), "version must be specified");
        } else if !wrong.is_empty() {
            errors.add(at, &number.into(), &wrong.join(","));
        }
    }
    required_text(errors, "spec.paramKind.kind", &kind["kind"], |kind| {
        let wrong = dns_1035_label(&kind.to_lowercase());
        let detail = || {
            format!(
                "may have mixed case, but should otherwise match: {}",
                wrong.join(",")
            )
        };
        Vec::from_iter((!wrong.is_empty()).then(detail))
    });
}

fn validations(errors: &mut Errors, object: &Value) {
    let (list, annotations) = (
        &object["spec"]["validations"],
        &object["spec"]["auditAnnotations"],
    );
    if count(list) == 0 && count(annotations) == 0 {
        let detail = "validations or auditAnnotations must contain at least one item";
        errors.required("spec.validations", detail);
        errors.required("spec.auditAnnotations", detail);
    }
    for (index, validation) in items(list) {
        let at = format!("spec.validations[{index}]");
        expression(
            errors,
            format!("{at}.expression"),
            &validation["expression"],
        );
        let (message, computed) = (&validation["message"], &validation["messageExpression"]);
        let blank = |value: &Value| !text(value).is_empty() && text(value).trim().is_empty();
        if blank(computed) {
            errors.add(
                format!("{at}.messageExpression"),
                computed,
                "must be non-empty if specified",
            );
        }
        if blank(message) {
            errors.add(
                format!("{at}.message"),
                message,
                "message must be non-empty if specified",
            );
        } else if text(message).trim().contains(['\n', '\r']) {
            errors.add(
                format!("{at}.message"),
                message,
                "message must not contain line breaks",
            );
        }
        if !validation["reason"].is_null() {
            let reasons = &["Forbidden", "Invalid", "RequestEntityTooLarge"];
            errors.one_of(format!("{at}.reason"), &validation["reason"], reasons);
        }
    }
    if count(annotations) > MOST_ANNOTATIONS {
        let detail = format!("must not have more than {MOST_ANNOTATIONS} auditAnnotations");
        errors.add("spec.auditAnnotations", annotations, &detail);
    }
    for (index, annotation) in items(annotations) {
        let at = format!("spec.auditAnnotations[{index}]");
        let (name, key) = (text(&object["metadata"]["name"]), &annotation["key"]);
        if name.is_empty() {
            errors.add(
                format!("{at}.key"),
                &text(key).into(),
                "requires metadata.name be non-empty",
            );
        } else {
            let full = format!("{name}/{}", text(key));
            errors.invalid(&format!("{at}.key"), full.as_str(), qualified_name(&full));
        }
        let (at_value, value) = (
            format!("{at}.valueExpression"),
            text(&annotation["valueExpression"]).trim(),
        );
        if value.is_empty() {
            errors.required(at_value, "valueExpression is not specified");
        } else if value.len() > LONGEST_ANNOTATION {
            errors.required(
                at_value,
                &format!("must not exceed {LONGEST_ANNOTATION} bytes in length"),
            );
        }
        if items(annotations)
            .take(index)
            .any(|(_, other)| other["key"] == *key)
        {
            errors
                .0
                .push(FieldError::duplicate(format!("{at}.key"), key));
        }
    }
}

fn mutations(errors: &mut Errors, spec: &Value) {
    if count(&spec["mutations"]) == 0 {
        errors.required("spec.mutations", "mutations must contain at least one item");
    }
    for (index, mutation) in items(&spec["mutations"]) {
        let at = format!("spec.mutations[{index}]");
        let field = match text(&mutation["patchType"]) {
            "" => {
                errors.required(format!("{at}.patchType"), "");
                continue;
            }
            "ApplyConfiguration" => "applyConfiguration",
            "JSONPatch" => "jsonPatch",
            _ => {
                let kinds = &["ApplyConfiguration", "JSONPatch"];
                errors.one_of(format!("{at}.patchType"), &mutation["patchType"], kinds);
                continue;
            }
        };
        if mutation[field].is_null() {
            let detail = format!(
                "must be specified when patchType is {}",
                text(&mutation["patchType"])
            );
            errors.required(format!("{at}.{field}"), &detail);
        } else {
            expression(
                errors,
                format!("{at}.{field}.expression"),
                &mutation[field]["expression"],
            );
        }
    }
    match &spec["reinvocationPolicy"] {
        Value::Null => errors.required("spec.reinvocationPolicy", ""),
        policy => errors.one_of("spec.reinvocationPolicy", policy, REINVOCATION_POLICIES),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::strategy::fields::tests::{check_new, with};

    fn policy() -> Value {
        let rule = json!({ "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"] });
        json!({ "metadata": { "name": "a.example.com" }, "spec": { "failurePolicy": "Fail",
            "matchConstraints": { "matchPolicy": "Exact", "namespaceSelector": {}, "objectSelector": {}, "resourceRules": [rule] },
            "validations": [{ "expression": "true" }] } })
    }

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn a_policy_says_what_it_checks_and_where() {
        let empty = "Required value: validations or auditAnnotations must contain at least one item";
        check_new(&AdmissionPolicy::Validating, &policy(), &[
            ("/spec/failurePolicy", Value::Null, &["spec.failurePolicy: Required value"]),
            ("/spec/matchConstraints", Value::Null, &["spec.matchConstraints: Required value"]),
            ("/spec/matchConstraints/resourceRules", json!([]), &["spec.matchConstraints.resourceRules: Required value"]),
            ("/spec/matchConstraints/objectSelector", Value::Null, &["spec.matchConstraints.objectSelector: Required value"]),
            ("/spec/validations", json!([]), &[&format!("spec.validations: {empty}"), &format!("spec.auditAnnotations: {empty}")]),
            ("/spec/validations/0/expression", json!(""), &["spec.validations[0].expression: Required value: expression is not specified"]),
            ("/spec/validations/0/message", json!("a\nb"), &["spec.validations[0].message: Invalid value: \"a\\nb\": message must not contain line breaks"]),
            ("/spec/validations/0/reason", json!("Gone"), &["spec.validations[0].reason: Unsupported value: \"Gone\": supported values: \"Forbidden\", \"Invalid\", \"RequestEntityTooLarge\""]),
            ("/spec/variables", json!([{ "name": "for", "expression": "1" }]), &["spec.variables[0].name: Invalid value: \"for\": name is not a valid CEL identifier"]),
            ("/spec/paramKind", json!({ "apiVersion": "v1" }), &["spec.paramKind.kind: Required value"]),
            ("/spec/paramKind", json!({ "apiVersion": "a/b/c", "kind": "A" }), &["spec.paramKind.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c"]),
            ("/spec/auditAnnotations", json!([{ "key": "a", "valueExpression": "1" }, { "key": "a" }]), &["spec.auditAnnotations[1].valueExpression: Required value: valueExpression is not specified", "spec.auditAnnotations[1].key: Duplicate value: \"a\""]),
        ]);
    }

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn a_policy_that_mutates_says_how() {
        let good = with(&policy(), "/spec/validations", Value::Null);
        let good = with(&good, "/spec/reinvocationPolicy", json!("Never"));
        let good = with(&good, "/spec/mutations", json!([{ "patchType": "JSONPatch", "jsonPatch": { "expression": "[]" } }]));
        check_new(&AdmissionPolicy::Mutating, &good, &[
            ("/spec/mutations", json!([]), &["spec.mutations: Required value: mutations must contain at least one item"]),
            ("/spec/mutations/0/patchType", json!("Merge"), &["spec.mutations[0].patchType: Unsupported value: \"Merge\": supported values: \"ApplyConfiguration\", \"JSONPatch\""]),
            ("/spec/reinvocationPolicy", Value::Null, &["spec.reinvocationPolicy: Required value"]),
        ]);
    }
}
