//! Classes of ingresses.

use serde_json::Value;

use super::ingress::reference;
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::{self, none_if_empty, text};
use crate::strategy::fields::{anything, optional_text, raise_generation, required_text};
use crate::strategy::validation::{Errors, dns_label, subdomain};
use crate::strategy::{Column, Context, Strategy};
use crate::table;

/// Classes of ingresses: who implements them.
pub struct IngressClass;

const DEFAULT_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";

/// The longest name of a controller.
const LONGEST_CONTROLLER: usize = 250;

/// What is wrong with the name of a controller: `example.com/name`, each mistake with the part that it is about.
fn controller(errors: &mut Errors, at: &str, name: &str) {
    let parts = name
        .split_once('/')
        .filter(|(host, path)| !host.is_empty() && !path.is_empty());
    let Some((host, path)) = parts else {
        let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        return errors.add(at, &name.into(), detail);
    };
    errors.invalid(at, host, subdomain(host));
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&c);
    if !path.bytes().all(allowed) {
        let detail =
            "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
        errors.add(at, &path.into(), detail);
    }
}

fn parameters(errors: &mut Errors, parameters: &Value) {
    let at = "spec.parameters";
    reference(errors, at, parameters);
    let (scope, namespace) = (&parameters["scope"], &parameters["namespace"]);
    let place = format!("{at}.namespace");
    match scope.as_str() {
        None => errors.required(format!("{at}.scope"), ""),
        Some("Namespace") if namespace.is_null() => {
            errors.required(place, "`parameters.scope` is set to 'Namespace'");
        }
        Some("Namespace") => optional_text(errors, &place, namespace, dns_label),
        Some("Cluster") if !namespace.is_null() => {
            let detail = "`parameters.scope` is set to 'Cluster'";
            errors.0.push(FieldError::forbidden(place, detail));
        }
        Some(_) => errors.one_of(format!("{at}.scope"), scope, &["Cluster", "Namespace"]),
    }
}

impl Strategy for IngressClass {
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

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let (at, spec) = ("spec.controller", &object["spec"]);
        required_text(&mut errors, at, &spec["controller"], anything);
        let name = text(&spec["controller"]);
        if name.len() > LONGEST_CONTROLLER {
            errors
                .0
                .push(FieldError::too_long(at, LONGEST_CONTROLLER, "bytes"));
        }
        if !name.is_empty() {
            controller(&mut errors, at, name);
        }
        if !spec["parameters"].is_null() {
            parameters(&mut errors, &spec["parameters"]);
        }
        errors.0
    }

    fn validate_update(
        &self,
        _: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let (name, before) = (&object["spec"]["controller"], &old["spec"]["controller"]);
        errors.immutable("spec.controller", name, before);
        errors.0.extend(self.validate(object));
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Controller Parameters Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let parameters = &object["spec"]["parameters"];
        let mut shown = text(&parameters["kind"]).to_owned();
        if let Some(group) = parameters["apiGroup"].as_str() {
            shown.push_str(&format!(".{group}"));
        }
        if parameters.is_object() {
            shown.push_str(&format!("/{}", text(&parameters["name"])));
        }
        let is_default = object["metadata"]["annotations"][DEFAULT_CLASS] == "true";
        let mark = if is_default { " (default)" } else { "" };
        vec![
            format!("{}{mark}", text(&object["metadata"]["name"])).into(),
            text(&object["spec"]["controller"]).into(),
            none_if_empty(shown).into(),
            table::age(object, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::strategy::fields::tests::{check_new, check_update};

    fn class() -> Value {
        json!({ "metadata": { "name": "a" }, "spec": { "controller": "example.com/a" } })
    }

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn a_class_names_its_controller() {
        check_new(&IngressClass, &class(), &[
            ("/spec/controller", Value::Null, &["spec.controller: Required value"]),
            ("/spec/controller", json!("a"), &["spec.controller: Invalid value: \"a\": must be a domain-prefixed path (such as \"acme.io/foo\")"]),
            ("/spec/controller", json!("example.com/a b"), &["spec.controller: Invalid value: \"a b\": Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')"]),
            ("/spec/parameters", json!({ "kind": "A", "name": "a" }), &["spec.parameters.scope: Required value"]),
            ("/spec/parameters", json!({ "kind": "A", "name": "a", "scope": "Namespace" }), &["spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'"]),
            ("/spec/parameters", json!({ "kind": "A", "name": "a", "scope": "Cluster", "namespace": "b" }), &["spec.parameters.namespace: Forbidden: `parameters.scope` is set to 'Cluster'"]),
        ]);
        check_update(&IngressClass, &class(), &[
            ("/spec/controller", json!("example.com/b"), &["spec.controller: Invalid value: \"example.com/b\": field is immutable"]),
        ]);
    }

    #[test]
    fn the_default_class_is_marked() {
        let mut class = class();
        class["metadata"]["annotations"] = json!({ DEFAULT_CLASS: "true" });
        assert_eq!(
            IngressClass.cells(&class, jiff::Timestamp::UNIX_EPOCH)[0],
            "a (default)"
        );
    }
}
