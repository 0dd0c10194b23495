//! Fills in the defaults of an object, as `pkg/apis/*/v1/defaults.go` do for the types.

use serde_json::{Map, Value, json};

use super::{FieldDefault, Rule, Schema, Shape, TypeId};

/// Defaults of one object of the type `id`, then of everything inside it.
pub fn apply(schema: &Schema, id: TypeId, value: &mut Value) {
    let Value::Object(object) = value else { return };
    let kind = schema.get(id);
    for field in &kind.fields {
        let missing = object.get(&*field.name).is_none_or(Value::is_null);
        let new = match &field.default {
            FieldDefault::None => None,
            FieldDefault::Missing(value) => missing.then(|| value.clone()),
            FieldDefault::Zero(value) => {
                (missing || object.get(&*field.name).is_some_and(is_zero)).then(|| value.clone())
            }
            FieldDefault::Rule(rule) => computed(*rule, object.get(&*field.name), object),
        };
        if let Some(new) = new {
            object.insert(field.name.to_string(), new);
        }
    }
    for (name, value) in object.iter_mut() {
        if let Some(field) = kind.field(name) {
            descend(schema, &field.shape, value);
        }
    }
}

fn descend(schema: &Schema, shape: &Shape, value: &mut Value) {
    match (shape, value) {
        (Shape::Object(id), value) => apply(schema, *id, value),
        (Shape::List(item), Value::Array(items)) => {
            items
                .iter_mut()
                .for_each(|value| descend(schema, item, value));
        }
        (Shape::Map(of), Value::Object(fields)) => {
            fields
                .values_mut()
                .for_each(|value| descend(schema, of, value));
        }
        _ => {}
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(_) | Value::Object(_) => false,
    }
}

fn computed(rule: Rule, value: Option<&Value>, object: &Map<String, Value>) -> Option<Value> {
    let unset = value.is_none_or(is_zero);
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    match rule {
        Rule::ImagePullPolicy => unset.then(|| {
            if is_latest(text("image")) {
                "Always".into()
            } else {
                "IfNotPresent".into()
            }
        }),
        Rule::EmptyDir => (object.keys().all(|key| key == "name")).then(|| json!({})),
        Rule::TargetPort => unset.then(|| object.get("port").cloned().unwrap_or_default()),
        Rule::RollingUpdate => {
            let rolling = matches!(text("type"), "" | "RollingUpdate");
            (value.is_none_or(Value::is_null) && rolling).then(|| json!({}))
        }
        Rule::RollingUpdateIfUntyped => {
            (value.is_none_or(Value::is_null) && text("type").is_empty()).then(|| json!({}))
        }
        Rule::SubjectGroup => (unset && matches!(text("kind"), "User" | "Group"))
            .then(|| "rbac.authorization.k8s.io".into()),
    }
}

/// Whether an image's tag is `latest`, or missing without a digest in its place.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::GroupVersionKind;
    use crate::schema::Schemas;

    fn gvk(group: &str, kind: &str) -> GroupVersionKind {
        GroupVersionKind {
            group: group.into(),
            version: "v1".into(),
            kind: kind.into(),
        }
    }

    #[test]
    fn a_deployment_gets_what_kubernetes_gives_it() {
        let mut object = json!({ "spec": { "template": { "spec": { "containers": [
            { "name": "a", "image": "registry:5000/x", "livenessProbe": { "httpGet": { "port": 80 }, "timeoutSeconds": 0 } },
            { "name": "b", "image": "x:1", "ports": [{ "containerPort": 80 }] },
        ], "volumes": [{ "name": "v" }, { "name": "c", "configMap": { "name": "n" } }] } } } });
        Schemas::builtin().apply_defaults(&gvk("apps", "Deployment"), &mut object);
        let spec = &object["spec"];
        assert_eq!(
            spec["strategy"],
            json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": "25%", "maxUnavailable": "25%" } })
        );
        assert_eq!(
            (&spec["replicas"], &spec["revisionHistoryLimit"]),
            (&json!(1), &json!(10))
        );
        let pod = &spec["template"]["spec"];
        assert_eq!(pod["containers"][0]["imagePullPolicy"], "Always");
        assert_eq!(pod["containers"][1]["imagePullPolicy"], "IfNotPresent");
        assert_eq!(pod["containers"][0]["livenessProbe"]["timeoutSeconds"], 1);
        assert_eq!(
            pod["containers"][0]["livenessProbe"]["httpGet"]["path"],
            "/"
        );
        assert_eq!(pod["containers"][1]["ports"][0]["protocol"], "TCP");
        assert_eq!(pod["volumes"][0], json!({ "name": "v", "emptyDir": {} }));
        assert_eq!(pod["volumes"][1]["configMap"]["defaultMode"], 420);
        assert_eq!(pod["dnsPolicy"], "ClusterFirst");
        let once = object.clone();
        Schemas::builtin().apply_defaults(&gvk("apps", "Deployment"), &mut object);
        assert_eq!(object, once, "defaults come to rest");
    }

    #[test]
    fn a_recreate_deployment_has_no_rolling_update() {
        let mut object = json!({ "spec": { "strategy": { "type": "Recreate" } } });
        Schemas::builtin().apply_defaults(&gvk("apps", "Deployment"), &mut object);
        assert_eq!(object["spec"]["strategy"], json!({ "type": "Recreate" }));
    }
}
