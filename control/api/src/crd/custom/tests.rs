use serde_json::{Value, json};

use super::super::definition::{CustomResourceDefinition, storage_version};
use super::super::resources::{DefinitionError, resources};
use super::super::{conditions, names};
use super::*;
use crate::resource::{Resource, Scope};

const NOW: &str = "2026-01-02T03:04:05Z";

/// A definition with two versions, established.
fn crd() -> Value {
    let schema = json!({ "openAPIV3Schema": { "type": "object", "properties": {
        "spec": { "type": "object", "required": ["image"],
            "x-kubernetes-validations": [{ "rule": "self.replicas <= self.max", "message": "too many" }],
            "properties": {
                "image": { "type": "string" }, "mode": { "type": "string", "enum": ["fast", "slow"], "default": "fast" },
                "replicas": { "type": "integer", "minimum": 0, "default": 1 }, "max": { "type": "integer", "default": 10 },
                "tags": { "type": "array", "x-kubernetes-list-type": "set", "items": { "type": "string" } },
                "object": { "type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true } } },
        "status": { "type": "object", "properties": { "replicas": { "type": "integer" }, "selector": { "type": "string" },
            "conditions": { "type": "array", "items": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } } } } } });
    let mut crd = json!({
        "metadata": { "name": "widgets.example.com" },
        "spec": { "group": "example.com", "scope": "Namespaced",
            "names": { "kind": "Widget", "plural": "widgets", "shortNames": ["wd"] },
            "versions": [
                { "name": "v1", "served": true, "storage": true, "schema": schema,
                  "subresources": { "status": {}, "scale": { "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector" } },
                  "selectableFields": [{ "jsonPath": ".spec.mode" }],
                  "additionalPrinterColumns": [
                      { "name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status" },
                      { "name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas", "priority": 1, "description": "how many" },
                      { "name": "Object", "type": "string", "jsonPath": ".spec.object" },
                      { "name": "Since", "type": "date", "jsonPath": ".metadata.creationTimestamp" } ] },
                { "name": "v1beta1", "served": true, "storage": false, "deprecated": true, "schema": schema },
                { "name": "v0", "served": false, "storage": false, "schema": schema } ] },
    });
    CustomResourceDefinition.default(&mut crd);
    CustomResourceDefinition.prepare_for_create(&Context::component("test"), &mut crd);
    assert_eq!(CustomResourceDefinition.validate(&crd), []);
    crd["status"] = conditions(&crd, |_| false, NOW);
    assert!(names::is_established(&crd));
    crd
}

fn made() -> Vec<Resource> {
    resources(&crd()).expect("served")
}

fn errors(errors: Vec<FieldError>) -> Vec<String> {
    let line = |error: FieldError| format!("{}: {}", error.field, error.message);
    errors.into_iter().map(line).collect()
}

fn widget(spec: Value) -> Value {
    json!({ "apiVersion": "example.com/v1", "kind": "Widget", "metadata": { "name": "x" }, "spec": spec })
}

#[test]
fn every_served_version_is_a_resource() {
    let made = made();
    let [v1, beta] = made.as_slice() else {
        panic!("{made:?}")
    };
    assert_eq!(
        (v1.gvk.api_version(), v1.gvk.kind.as_str()),
        ("example.com/v1".to_owned(), "Widget")
    );
    assert_eq!(
        (v1.plural.as_str(), v1.singular.as_str(), v1.scope),
        ("widgets", "widget", Scope::Namespaced)
    );
    assert_eq!(v1.short_names, ["wd"]);
    assert_eq!(v1.storage_prefix, "example.com/widgets");
    assert_eq!(v1.subresources, [Subresource::Scale, Subresource::Status]);
    assert_eq!(v1.storage_version, None);
    assert_eq!(
        beta.storage_version
            .as_ref()
            .map(|gvk| gvk.version.as_str()),
        Some("v1")
    );
    assert_eq!(
        beta.strategy.deprecation(),
        Some("example.com/v1beta1 Widget is deprecated")
    );
    assert_eq!(v1.strategy.deprecation(), None);
    assert_eq!(v1.schema.root().go_name(), "Widget");
    assert_eq!(storage_version(&crd()), Some("v1"));
    let mut object = widget(json!({}));
    v1.convert(&mut object, &beta.gvk);
    assert_eq!(object["apiVersion"], "example.com/v1beta1");
}

#[test]
fn versions_that_only_a_webhook_converts_are_not_served() {
    let mut crd = crd();
    crd["spec"]["conversion"] = json!({ "strategy": "Webhook" });
    let error = resources(&crd).expect_err("nobody converts");
    assert_eq!(error, DefinitionError::WebhookConversion { versions: 3 });
}

#[test]
fn an_object_is_judged_with_all_rules() {
    let v1 = &made()[0];
    let mut object = widget(json!({ "image": "x" }));
    v1.strategy.default(&mut object);
    assert_eq!(
        object["spec"],
        json!({ "image": "x", "mode": "fast", "replicas": 1, "max": 10 })
    );
    assert_eq!(errors(v1.strategy.validate(&object)), [""; 0]);
    for (field, value, lines) in [
        (
            "replicas",
            json!(11),
            vec!["spec: Invalid value: \"object\": too many"],
        ),
        (
            "replicas",
            json!(-1),
            vec![
                "spec.replicas: Invalid value: -1: spec.replicas in body should be greater than or equal to 0",
                ".spec.replicas: Invalid value: -1: should be a non-negative integer",
            ],
        ),
        (
            "mode",
            json!("odd"),
            vec![
                "spec.mode: Unsupported value: \"odd\": supported values: \"fast\", \"slow\"",
                "<nil>: Invalid value: \"null\": some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
            ],
        ),
        (
            "tags",
            json!(["a", "b", "a"]),
            vec!["spec.tags[2]: Duplicate value: \"a\""],
        ),
        (
            "object",
            json!({ "kind": "Pod" }),
            vec![
                "spec.object.apiVersion: Required value: must not be empty",
                "<nil>: Invalid value: \"null\": some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
            ],
        ),
    ] {
        let mut object = object.clone();
        object["spec"][field] = value;
        assert_eq!(errors(v1.strategy.validate(&object)), lines);
    }
    let mut old = object.clone();
    old["spec"]["mode"] = "from before".into();
    let mut new = old.clone();
    new["spec"]["replicas"] = 2.into();
    assert_eq!(
        errors(v1.strategy.validate_update(None, &new, &old)),
        [""; 0],
        "what was there may stay"
    );
}

#[test]
fn a_status_subresource_splits_the_object() {
    let ctx = Context::component("test");
    let v1 = &made()[0];
    let mut object = widget(json!({ "image": "x" }));
    object["status"] = json!({ "replicas": 1 });
    v1.strategy.prepare_for_create(&ctx, &mut object);
    assert_eq!(
        (&object["metadata"]["generation"], object.get("status")),
        (&json!(1), None)
    );

    let old = object.clone();
    object["status"] = json!({ "replicas": 2 });
    object["metadata"]["labels"] = json!({ "a": "b" });
    let mut update = object.clone();
    v1.strategy
        .prepare_for_update(&ctx, None, &mut update, &old);
    assert_eq!(
        (&update["metadata"]["generation"], update.get("status")),
        (&json!(1), None)
    );
    assert_eq!(update["metadata"]["labels"], json!({ "a": "b" }));
    update["spec"]["image"] = "y".into();
    v1.strategy
        .prepare_for_update(&ctx, None, &mut update, &old);
    assert_eq!(update["metadata"]["generation"], 2);

    object["spec"]["image"] = "z".into();
    v1.strategy
        .prepare_for_update(&ctx, Some(Subresource::Status), &mut object, &old);
    assert_eq!(object["spec"], old["spec"]);
    assert_eq!(object["metadata"], old["metadata"]);
    assert_eq!(object["status"], json!({ "replicas": 2 }));
}

#[test]
fn without_a_status_subresource_every_change_raises_the_generation() {
    let ctx = Context::component("test");
    let beta = &made()[1];
    let mut object = widget(json!({ "image": "x" }));
    object["status"] = json!({ "replicas": 1 });
    beta.strategy.prepare_for_create(&ctx, &mut object);
    assert_eq!(object["status"], json!({ "replicas": 1 }));
    let old = object.clone();
    object["status"]["replicas"] = 2.into();
    beta.strategy
        .prepare_for_update(&ctx, None, &mut object, &old);
    assert_eq!(
        (
            &object["metadata"]["generation"],
            &object["status"]["replicas"]
        ),
        (&json!(2), &json!(2))
    );
}

#[test]
fn the_scale_is_where_the_definition_says() {
    let v1 = &made()[0];
    let mut object = widget(json!({ "image": "x", "replicas": 3 }));
    object["status"] = json!({ "replicas": 2, "selector": "a=b" });
    let scale = v1.strategy.scale(&object).expect("it has one");
    assert_eq!(scale["spec"], json!({ "replicas": 3 }));
    assert_eq!(scale["status"], json!({ "replicas": 2, "selector": "a=b" }));
    v1.strategy
        .set_scale(&mut object, &json!({ "spec": { "replicas": 5 } }))
        .expect("valid");
    assert_eq!(object["spec"]["replicas"], 5);
    assert!(
        v1.strategy
            .set_scale(&mut object, &json!({ "spec": { "replicas": -1 } }))
            .is_err()
    );
    assert_eq!(made()[1].strategy.scale(&object), None);
}

#[test]
fn tables_have_the_columns_of_the_definition() {
    let made = made();
    let now: jiff::Timestamp = "2026-01-02T03:14:05Z".parse().expect("a time");
    let mut object = widget(json!({ "image": "x", "replicas": 3, "object": { "kind": "Pod" } }));
    object["metadata"]["creationTimestamp"] = NOW.into();
    object["status"] = json!({ "conditions": [{ "type": "Other", "status": "False" }, { "type": "Ready", "status": "True" }] });
    let columns = made[0].strategy.columns();
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(names, ["Name", "Ready", "Replicas", "Object", "Since"]);
    assert_eq!(
        (columns[2].priority, columns[2].description.as_str()),
        (1, "how many")
    );
    let cells = made[0].strategy.cells(&object, now);
    assert_eq!(
        json!(cells),
        json!(["x", "True", 3, "{\"kind\":\"Pod\"}", "10m"])
    );
    object["status"] = Value::Null;
    assert_eq!(made[0].strategy.cells(&object, now)[1], Value::Null);
    let age: Vec<String> = made[1]
        .strategy
        .columns()
        .into_iter()
        .map(|c| c.name)
        .collect();
    assert_eq!(age, ["Name", "Age"]);
}

#[test]
fn selectable_fields_are_those_of_the_definition() {
    let made = made();
    assert_eq!(made[0].strategy.selectable_field_names(), ["spec.mode"]);
    let object = widget(json!({ "mode": "slow" }));
    assert_eq!(
        made[0].strategy.selectable_fields(&object),
        [("spec.mode", "slow".to_owned())]
    );
    assert!(made[1].strategy.selectable_field_names().is_empty());
}
