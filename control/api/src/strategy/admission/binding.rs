//! What binds policies to resources and parameters.

use serde_json::Value;

use super::match_resources;
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::{self, selector_text, text};
use crate::strategy::fields::{count, path_segment, raise_generation, required_text};
use crate::strategy::validation::{Errors, items, label_selector, subdomain};
use crate::strategy::{Column, Context, Strategy};
use crate::table;

/// What binds policies to resources and parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdmissionPolicyBinding {
    /// Of policies that validate.
    Validating,
    /// Of policies that mutate.
    Mutating,
}

impl Strategy for AdmissionPolicyBinding {
    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        common::first_generation(object);
    }

    fn prepare_for_update(
        &self,
        _: &Context,
        _: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        let changed = object["spec"] != old["spec"];
        raise_generation(object, old, changed);
    }

    fn require_resource_version(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = &object["spec"];
        required_text(
            &mut errors,
            "spec.policyName",
            &spec["policyName"],
            subdomain,
        );
        if !spec["paramRef"].is_null() {
            param_ref(&mut errors, &spec["paramRef"]);
        }
        if !spec["matchResources"].is_null() {
            // kube-apiserver writes it so.
            match_resources(&mut errors, "spec.matchResouces", &spec["matchResources"]);
        }
        if *self == Self::Validating {
            actions(&mut errors, &spec["validationActions"]);
        }
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name PolicyName ParamRef Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let (spec, params) = (&object["spec"], &object["spec"]["paramRef"]);
        let shown = match (text(&params["namespace"]), text(&params["name"])) {
            (_, "") if params["selector"].is_null() => "<unset>".to_owned(),
            (_, "") => selector_text(&params["selector"]),
            ("", name) => format!("*/{name}"),
            (namespace, name) => format!("{namespace}/{name}"),
        };
        vec![
            table::name(object),
            text(&spec["policyName"]).into(),
            shown.into(),
            table::age(object, now),
        ]
    }
}

fn param_ref(errors: &mut Errors, params: &Value) {
    let at = "spec.paramRef";
    let (name, selector) = (text(&params["name"]), &params["selector"]);
    if !name.is_empty() {
        errors.invalid(&format!("{at}.name"), name, path_segment(name));
    }
    label_selector(errors, &format!("{at}.selector"), selector);
    match (name.is_empty(), selector.is_null()) {
        (true, true) => errors.required(at, "one of name or selector must be specified"),
        (false, false) => {
            for field in ["name", "selector"] {
                let detail = "name and selector are mutually exclusive";
                errors
                    .0
                    .push(FieldError::forbidden(format!("{at}.{field}"), detail));
            }
        }
        _ => {}
    }
    let action = &params["parameterNotFoundAction"];
    if text(action).is_empty() {
        errors.required(format!("{at}.parameterNotFoundAction"), "");
    } else {
        errors.one_of(
            format!("{at}.parameterNotFoundAction"),
            action,
            &["Deny", "Allow"],
        );
    }
}

fn actions(errors: &mut Errors, list: &Value) {
    let at = "spec.validationActions";
    for (index, action) in items(list) {
        let at = format!("{at}[{index}]");
        errors.one_of(&at, action, &["Audit", "Deny", "Warn"]);
        if items(list).take(index).any(|(_, other)| other == action) {
            errors.0.push(FieldError::duplicate(at, action));
        }
    }
    let has = |name: &str| items(list).any(|(_, action)| action == name);
    if has("Deny") && has("Warn") {
        errors.add(at, list, "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)");
    }
    if count(list) == 0 {
        errors.required(at, "at least one validation action is required");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::strategy::fields::tests::check_new;

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn a_binding_names_a_policy_and_what_it_does() {
        let good = json!({ "spec": { "policyName": "a", "validationActions": ["Deny"] } });
        let action = json!("Deny");
        check_new(&AdmissionPolicyBinding::Validating, &good, &[
            ("/spec/policyName", Value::Null, &["spec.policyName: Required value"]),
            ("/spec/validationActions", json!([]), &["spec.validationActions: Required value: at least one validation action is required"]),
            ("/spec/validationActions", json!(["Deny", "Warn"]), &["spec.validationActions: Invalid value: [\"Deny\",\"Warn\"]: must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)"]),
            ("/spec/validationActions", json!(["Audit", "Audit"]), &["spec.validationActions[1]: Duplicate value: \"Audit\""]),
            ("/spec/paramRef", json!({ "parameterNotFoundAction": action }), &["spec.paramRef: Required value: one of name or selector must be specified"]),
            ("/spec/paramRef", json!({ "parameterNotFoundAction": action, "name": "a", "selector": {} }), &["spec.paramRef.name: Forbidden: name and selector are mutually exclusive", "spec.paramRef.selector: Forbidden: name and selector are mutually exclusive"]),
            ("/spec/paramRef", json!({ "name": "a" }), &["spec.paramRef.parameterNotFoundAction: Required value"]),
            ("/spec/matchResources", json!({ "namespaceSelector": {}, "objectSelector": {} }), &["spec.matchResouces.matchPolicy: Required value"]),
        ]);
    }
}
