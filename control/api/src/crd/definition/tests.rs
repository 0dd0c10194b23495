use serde_json::{Value, json};

use super::*;
use crate::strategy::Context;

/// A definition such as kubebuilder writes.
pub fn widgets() -> Value {
    serde_json::from_str(include_str!("widgets.json")).expect("the file is JSON")
}

/// A definition as it is when it is stored.
pub fn stored(mut crd: Value) -> Value {
    CustomResourceDefinition.default(&mut crd);
    CustomResourceDefinition.prepare_for_create(&Context::component("test"), &mut crd);
    crd
}

fn errors(crd: &Value) -> Vec<String> {
    let errors = CustomResourceDefinition.validate(crd);
    let line = |error: &FieldError| format!("{}: {}", error.field, error.message);
    errors.iter().map(line).collect()
}

#[test]
fn a_definition_of_kubebuilder_is_valid() {
    let crd = stored(widgets());
    assert_eq!(errors(&crd), [""; 0]);
    assert_eq!(crd["status"]["storedVersions"], json!(["v1"]));
    assert_eq!(crd["metadata"]["finalizers"], json!([CLEANUP_FINALIZER]));
    assert_eq!(crd["spec"]["conversion"], json!({ "strategy": "None" }));
    assert_eq!(crd["metadata"]["generation"], 1);
}

#[test]
fn decoding_a_definition_keeps_all_of_its_schema() {
    let mut crd = widgets();
    let properties = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    let properties = crd.pointer_mut(properties).expect("there");
    properties["list"] =
        json!({ "type": "array", "default": [], "items": { "type": "string", "x-odd": 1 } });
    properties["free"] = json!({ "type": "object", "default": {}, "additionalProperties": true });
    let body = serde_json::to_vec(&crd).expect("JSON");
    let gvk = crate::kinds::gvk("apiextensions.k8s.io/v1", "CustomResourceDefinition");
    let (format, mode) = (
        crate::schema::Format::Json,
        crate::schema::FieldValidation::Strict,
    );
    let decoded = crate::schema::Schemas::builtin().decode(&gvk, &body, format, mode);
    assert_eq!(decoded.expect("every field is known").object, crd);
}

#[test]
fn names_are_filled_in() {
    let mut crd = widgets();
    crd["spec"]["names"] = json!({ "kind": "Widget", "plural": "widgets" });
    let names = stored(crd)["spec"]["names"].clone();
    assert_eq!(
        names,
        json!({ "kind": "Widget", "plural": "widgets", "singular": "widget", "listKind": "WidgetList" })
    );
}

#[test]
#[rustfmt::skip] // A table: one mistake a line.
fn what_a_definition_may_not_say_is_refused_in_upstreams_words() {
    const LABEL: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
    let table = [
        ("/metadata/name", json!("other.example.com"), "metadata.name: Invalid value: \"other.example.com\": must be spec.names.plural+\".\"+spec.group".to_owned()),
        ("/spec/scope", json!(""), "spec.scope: Required value".to_owned()),
        ("/spec/scope", json!("Global"), "spec.scope: Unsupported value: \"Global\": supported values: \"Cluster\", \"Namespaced\"".to_owned()),
        ("/spec/names/kind", json!("1"), format!("spec.names.kind: Invalid value: \"1\": may have mixed case, but should otherwise match: {LABEL}")),
        ("/spec/names/listKind", json!("Widget"), "spec.names.listKind: Invalid value: \"Widget\": kind and listKind may not be the same".to_owned()),
        ("/spec/names/shortNames", json!(["A"]), format!("spec.names.shortNames[0]: Invalid value: \"A\": {LABEL}")),
        ("/spec/preserveUnknownFields", json!(true), "spec.preserveUnknownFields: Invalid value: true: cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead".to_owned()),
        ("/spec/conversion/strategy", json!("Webhook"), "spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook".to_owned()),
        ("/spec/versions/0/schema", Value::Null, "spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required".to_owned()),
        ("/spec/versions/0/deprecationWarning", json!("old"), "spec.versions[0].deprecationWarning: Invalid value: \"old\": can only be set for deprecated versions".to_owned()),
        ("/spec/versions/0/subresources/scale/specReplicasPath", json!(".status.x"), "spec.subresources.scale.specReplicasPath: Invalid value: \".status.x\": should be a json path under .spec".to_owned()),
        ("/spec/versions/0/subresources/scale/statusReplicasPath", json!(""), "spec.subresources.scale.statusReplicasPath: Required value".to_owned()),
        ("/spec/versions/0/additionalPrinterColumns/0/type", json!("text"), "spec.additionalPrinterColumns[0].type: Invalid value: \"text\": must be one of boolean,date,integer,number,string".to_owned()),
        ("/spec/versions/0/additionalPrinterColumns/0/jsonPath", json!("status"), "spec.additionalPrinterColumns[0].JSONPath: Invalid value: \"status\": must be a simple json path starting with .".to_owned()),
        ("/spec/versions/0/selectableFields/0/jsonPath", json!(".spec.none"), "spec.selectableFields[0].jsonPath: Invalid value: \".spec.none\": is an invalid path: does not refer to a valid field".to_owned()),
        ("/spec/versions/0/selectableFields/0/jsonPath", json!(".spec.tags"), "spec.selectableFields[0].jsonPath: Invalid value: \".spec.tags\": must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.".to_owned()),
    ];
    for (at, value, line) in table {
        let mut crd = stored(widgets());
        let (parent, field) = at.rsplit_once('/').expect("a path");
        crd.pointer_mut(parent).unwrap_or_else(|| panic!("{at}"))[field] = value;
        let errors = errors(&crd);
        assert!(errors.contains(&line), "{at}: {errors:#?}");
    }
}

#[test]
#[rustfmt::skip] // A table: one schema a line.
fn schemas_that_are_not_structural_are_refused_in_upstreams_words() {
    let table = [
        (json!({}), "type: Required value: must not be empty at the root"),
        (json!({ "type": "array", "items": { "type": "string" } }), "type: Invalid value: \"array\": must be object at the root"),
        (json!({ "type": "object", "properties": { "spec": {} } }), "properties[spec].type: Required value: must not be empty for specified object fields"),
        (json!({ "type": "object", "properties": { "l": { "type": "array", "items": {} } } }), "properties[l].items.type: Required value: must not be empty for specified array items"),
        (json!({ "type": "object", "properties": { "l": { "type": "array" } } }), "properties[l].items: Required value: must be specified"),
        (json!({ "type": "object", "properties": { "x": { "type": "text" } } }), "properties[x].type: Unsupported value: \"text\": supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\""),
        (json!({ "type": "object", "properties": { "x": { "type": "string", "anyOf": [{ "type": "string" }] } } }), "properties[x].anyOf[0].type: Forbidden: must be empty to be structural"),
        (json!({ "type": "object", "properties": { "x": { "type": "object", "allOf": [{ "properties": { "y": { "minimum": 1 } } }] } } }), "properties[x].properties[y]: Required value: because it is defined in spec.validation.openAPIV3Schema.properties[x].allOf[0].properties[y]"),
        (json!({ "type": "object", "properties": { "metadata": { "type": "object", "properties": { "labels": { "type": "object" } } } } }), "properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified"),
        (json!({ "type": "object", "properties": { "x": { "type": "string", "pattern": "(" } } }), "properties[x].pattern: Invalid value: \"(\": must be a valid regular expression, but isn't: error parsing regexp: unclosed group: `(`"),
        (json!({ "type": "object", "properties": { "x": { "type": "object", "properties": { "y": { "type": "string" } }, "additionalProperties": { "type": "string" } } } }), "properties[x].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive"),
        (json!({ "type": "object", "properties": { "x": { "type": "array", "uniqueItems": true, "items": { "type": "string" } } } }), "properties[x].uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic"),
        (json!({ "type": "object", "properties": { "x": { "$ref": "#/y", "type": "string" } } }), "properties[x].$ref: Forbidden: $ref is not supported"),
        (json!({ "type": "object", "properties": { "x": { "type": "string", "x-kubernetes-preserve-unknown-fields": false } } }), "properties[x].x-kubernetes-preserve-unknown-fields: Invalid value: false: must be true or undefined"),
        (json!({ "type": "object", "properties": { "x": { "type": "array", "x-kubernetes-list-type": "map", "items": { "type": "object" } } } }), "properties[x].x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map"),
        (json!({ "type": "object", "properties": { "x": { "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": { "type": "object", "properties": { "k": { "type": "string" } } } } } }), "properties[x].items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"),
        (json!({ "type": "object", "properties": { "x": { "type": "object", "x-kubernetes-embedded-resource": true } } }), "properties[x].properties: Required value: must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields"),
        (json!({ "type": "object", "additionalProperties": { "type": "string" } }), "additionalProperties: Forbidden: must not be used at the root"),
        (json!({ "type": "object", "properties": { "metadata": { "type": "object", "default": {} } } }), "properties[metadata].default: Forbidden: must not be set in top-level metadata"),
        (json!({ "type": "object", "properties": { "x": { "type": "object", "default": { "z": 1 } } } }), "properties[x].default: Invalid value: {\"z\":1}: must not have unknown fields"),
        (json!({ "type": "object", "properties": { "x": { "type": "string", "x-kubernetes-validations": [{ "rule": "self == 1", "message": "m" }] } } }), "properties[x].x-kubernetes-validations[0].rule: Invalid value: {\"FieldPath\":\"\",\"Message\":\"m\",\"MessageExpression\":\"\",\"OptionalOldSelf\":null,\"Reason\":null,\"Rule\":\"self == 1\"}: compilation failed: ERROR: <input>:1:6: found no matching overload for '_==_' applied to '(string, int)'\n | self == 1\n | .....^"),
    ];
    for (schema, line) in table {
        let mut crd = stored(widgets());
        let version = &mut crd["spec"]["versions"][0];
        version["schema"]["openAPIV3Schema"] = schema.clone();
        version["selectableFields"] = Value::Null;
        version["subresources"] = Value::Null;
        let line = format!("spec.validation.openAPIV3Schema.{line}");
        let errors = errors(&crd);
        assert!(errors.contains(&line), "{schema}: {errors:#?}");
    }
}

#[test]
fn a_status_subresource_restricts_the_root_of_the_schema() {
    let mut crd = stored(widgets());
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["anyOf"] =
        json!([{ "required": ["spec"] }]);
    let errors = errors(&crd);
    assert!(
        errors[0].contains("only [Description Type Format"),
        "{errors:?}"
    );
}

#[test]
fn schemas_that_differ_are_named_by_their_version() {
    let mut crd = widgets();
    let mut second = crd["spec"]["versions"][0].clone();
    second["name"] = "v2".into();
    second["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["image"]["type"] =
        "text".into();
    crd["spec"]["versions"]
        .as_array_mut()
        .expect("a list")
        .push(second);
    let errors = errors(&stored(crd));
    let both = "must have exactly one version marked as storage version";
    assert!(errors.iter().any(|line| line.ends_with(both)), "{errors:?}");
    let at = "spec.versions[1].schema.openAPIV3Schema.properties[spec].properties[image].type: ";
    assert!(errors.iter().any(|line| line.starts_with(at)), "{errors:?}");
}

#[test]
fn what_identifies_objects_cannot_change() {
    let mut old = stored(widgets());
    let mut new = old.clone();
    new["spec"]["group"] = "example.org".into();
    new["spec"]["scope"] = "Cluster".into();
    let update = |new: &Value, old: &Value| -> Vec<String> {
        let errors = CustomResourceDefinition.validate_update(None, new, old);
        let line = |error: FieldError| format!("{}: {}", error.field, error.message);
        errors.into_iter().map(line).collect()
    };
    let group = "spec.group: Invalid value: \"example.org\": field is immutable".to_owned();
    let scope = "spec.scope: Invalid value: \"Cluster\": field is immutable".to_owned();
    let before = update(&new, &old);
    assert!(
        before.contains(&group) && !before.contains(&scope),
        "{before:?}"
    );
    old["status"] = names::conditions(&old, |_| false, "2026-01-01T00:00:00Z");
    assert!(update(&new, &old).contains(&scope));
}

#[test]
fn a_version_in_which_objects_are_stored_stays() {
    let ctx = Context::component("test");
    let old = stored(widgets());
    let mut new = old.clone();
    let mut second = new["spec"]["versions"][0].clone();
    second["name"] = "v2".into();
    new["spec"]["versions"] = json!([second]);
    CustomResourceDefinition.prepare_for_update(&ctx, None, &mut new, &old);
    assert_eq!(new["status"]["storedVersions"], json!(["v1", "v2"]));
    assert_eq!(new["metadata"]["generation"], 2);
    let errors = errors(&new);
    assert_eq!(
        errors,
        [
            "status.storedVersions[0]: Invalid value: \"v1\": missing from spec.versions; v1 was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in v1 and removes v1 from status.storedVersions"
        ]
    );
}

#[test]
fn groups_of_kubernetes_need_an_approval() {
    let mut crd = widgets();
    crd["spec"]["group"] = "widgets.k8s.io".into();
    crd["metadata"]["name"] = "widgets.widgets.k8s.io".into();
    let mut crd = stored(crd);
    assert_eq!(
        errors(&crd),
        [
            "metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111"
        ]
    );
    crd["metadata"]["annotations"]["api-approved.kubernetes.io"] = "unapproved, for a test".into();
    assert_eq!(errors(&crd), [""; 0]);
}

#[test]
fn hostile_schemas_are_refused_and_never_endless() {
    let mut deep = json!({ "type": "string" });
    for _ in 0..100 {
        deep = json!({ "type": "object", "properties": { "x": deep } });
    }
    let wide: serde_json::Map<String, Value> = (0..120_000)
        .map(|n| (format!("p{n}"), json!({ "type": "string" })))
        .collect();
    let patterns: serde_json::Map<String, Value> = (0..2_000)
        .map(|n| {
            (
                format!("p{n}"),
                json!({ "type": "string", "pattern": format!("^{n}$") }),
            )
        })
        .collect();
    let rules: Vec<Value> = (0..10_000)
        .map(|n| json!({ "rule": format!("{n} > 0") }))
        .collect();
    for (schema, words) in [
        (
            json!({ "type": "object", "x-kubernetes-validations": rules }),
            "must not have more than 2000 validation rules",
        ),
        (
            json!({ "type": "object", "x-kubernetes-validations": [{ "rule": "x".repeat(3 << 20) }] }),
            "must not have more than 2000 validation rules",
        ),
        (
            json!({ "type": "object", "x-kubernetes-validations": ["rule"] }),
            "must be of type a list of validation rules",
        ),
        (deep, "must not nest schemas deeper"),
        (
            json!({ "type": "object", "properties": wide }),
            "must not have more than 100000 schemas",
        ),
        (
            json!({ "type": "object", "properties": patterns }),
            "must not have more than 1000 different patterns",
        ),
        (
            json!({ "type": "object", "properties": [] }),
            "must be of type object",
        ),
        (json!("schema"), "must be of type object"),
        (
            json!({ "type": "object", "required": [1] }),
            "must be of type string",
        ),
    ] {
        let errors = crate::crd::parse(&schema, "s").expect_err(words);
        assert!(
            errors[0].message.contains(words),
            "{words}: {:?}",
            errors[0]
        );
    }
}

#[test]
fn the_table_has_the_columns_of_1_37() {
    let names: Vec<String> = CustomResourceDefinition
        .columns()
        .into_iter()
        .map(|c| c.name)
        .collect();
    assert_eq!(names, ["Name", "Group", "Scope", "Versions", "Created At"]);
    let mut crd = widgets();
    crd["metadata"]["creationTimestamp"] = "2026-01-02T03:04:05Z".into();
    let cells = CustomResourceDefinition.cells(&crd, jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(
        cells,
        [
            "widgets.example.com",
            "example.com",
            "Namespaced",
            "v1",
            "2026-01-02T03:04:05Z"
        ]
    );
}

#[test]
fn formats_that_nobody_checks_are_warned_of_once() {
    let old = widgets();
    let mut new = old.clone();
    new["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["image"]
        ["format"] = "image".into();
    assert_eq!(
        CustomResourceDefinition.warnings(&new, Some(&old)),
        ["unrecognized format \"image\""]
    );
    assert!(
        CustomResourceDefinition
            .warnings(&new, Some(&new))
            .is_empty()
    );
}

#[test]
fn a_schema_of_megabytes_is_read_in_one_go() {
    let words = "x".repeat(60);
    let fields: serde_json::Map<String, Value> = (0..15_000)
        .map(|n| (format!("p{n}"), json!({ "type": "string", "description": words, "enum": ["a", "b"], "default": "a" })))
        .collect();
    let schema = json!({ "type": "object", "properties": { "spec": { "type": "object", "properties": fields, "default": {} } } });
    assert!(schema.to_string().len() > 1 << 20);
    let structural = crate::crd::parse(&schema, "s").expect("large, but good");
    assert_eq!(crate::crd::compile(&structural, "n").root().fields.len(), 4);
    let list = json!({ "type": "object", "properties": { "x": { "type": "string", "enum": (0..300_000).map(|n| n.to_string()).collect::<Vec<_>>() } } });
    let structural = crate::crd::parse(&list, "s").expect("large, but good");
    let mistakes = structural.validate(&json!({ "x": "none" }));
    assert_eq!(mistakes.len(), 1);
}
