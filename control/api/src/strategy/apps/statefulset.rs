//! Stateful sets.

use serde_json::{Value, json};

use super::volume_claim;
use crate::registry::names;
use crate::resource::Subresource;
use crate::status::{ApiError, FieldError};
use crate::strategy::common::{self, containers_text, text};
use crate::strategy::pod::warnings;
use crate::strategy::validation::{Errors, dns_label, items};
use crate::strategy::workload::{
    at_most_all, collisions, default_template, int_or_percent, scale_of, selector_and_template,
    set_scale,
};
use crate::strategy::{Column, Context, Strategy};
use crate::table;

/// Stateful sets.
pub struct StatefulSet;

/// The fields of the spec that may change.
const MUTABLE: [&str; 7] = [
    "replicas",
    "template",
    "updateStrategy",
    "minReadySeconds",
    "ordinals",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
];

const IMMUTABLE: &str = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";

/// The counts of a status that Go leaves out when they are zero.
const OPTIONAL_COUNTS: [&str; 3] = ["readyReplicas", "currentReplicas", "updatedReplicas"];

/// The spec as its pods will be: the controller gives them hostname and subdomain, and a volume for each claim.
fn as_pods_are(spec: &Value) -> Value {
    let mut spec = spec.clone();
    let claims: Vec<Value> = items(&spec["volumeClaimTemplates"])
        .map(|(_, claim)| claim["metadata"]["name"].clone())
        .collect();
    let Some(pod) = spec
        .get_mut("template")
        .and_then(|template| template.get_mut("spec"))
        .and_then(Value::as_object_mut)
    else {
        return spec;
    };
    pod.remove("subdomain");
    pod.remove("hostname");
    if !claims.is_empty() {
        let own = pod.remove("volumes").unwrap_or_default();
        let kept = items(&own).map(|(_, volume)| volume);
        let kept = kept
            .filter(|volume| !claims.contains(&volume["name"]))
            .cloned();
        let volume =
            |name: &Value| json!({ "name": name, "persistentVolumeClaim": { "claimName": name } });
        let volumes = claims.iter().map(volume).chain(kept).collect();
        pod.insert("volumes".to_owned(), volumes);
    }
    spec
}

fn update_strategy(errors: &mut Errors, strategy: &Value) {
    let at = "spec.updateStrategy.rollingUpdate";
    let rolling = &strategy["rollingUpdate"];
    match text(&strategy["type"]) {
        "" => errors.required("spec.updateStrategy", ""),
        "OnDelete" if !rolling.is_null() => {
            errors.add(
                at,
                rolling,
                "only allowed for updateStrategy 'RollingUpdate'",
            );
        }
        "OnDelete" => {}
        "RollingUpdate" => {
            errors.not_negative(format!("{at}.partition"), &rolling["partition"]);
            let most = &rolling["maxUnavailable"];
            if !most.is_null() {
                let path = format!("{at}.maxUnavailable");
                if int_or_percent(errors, &path, most) == Some(0) {
                    errors.add(&path, most, "cannot be 0");
                }
                at_most_all(errors, &path, most);
            }
        }
        _ => errors.add(
            "spec.updateStrategy",
            strategy,
            "must be 'RollingUpdate' or 'OnDelete'",
        ),
    }
}

/// Mistakes in a spec but for its claims and the name of its service, which never change.
fn spec_errors(spec: &Value) -> Errors {
    let mut errors = Errors::default();
    let policy = &spec["podManagementPolicy"];
    match text(policy) {
        "" => errors.required("spec.podManagementPolicy", ""),
        "OrderedReady" | "Parallel" => {}
        _ => errors.add(
            "spec.podManagementPolicy",
            policy,
            "must be 'OrderedReady' or 'Parallel'",
        ),
    }
    update_strategy(&mut errors, &spec["updateStrategy"]);
    let retention = &spec["persistentVolumeClaimRetentionPolicy"];
    if !retention.is_null() {
        for field in ["whenDeleted", "whenScaled"] {
            errors.one_of(
                format!("spec.persistentVolumeClaimRetentionPolicy.{field}"),
                &retention[field],
                &["Retain", "Delete"],
            );
        }
    }
    errors.not_negative("spec.replicas", &spec["replicas"]);
    errors.not_negative("spec.minReadySeconds", &spec["minReadySeconds"]);
    errors.not_negative("spec.ordinals.start", &spec["ordinals"]["start"]);
    selector_and_template(&mut errors, &as_pods_are(spec), "statefulset");
    errors
}

impl Strategy for StatefulSet {
    fn check_name(&self, name: &str) -> Result<(), String> {
        names::dns_label(name)
    }

    fn default(&self, object: &mut Value) {
        default_template(&mut object["spec"]);
        let claims = object["spec"].get_mut("volumeClaimTemplates");
        for claim in claims.and_then(Value::as_array_mut).into_iter().flatten() {
            // The conversion to `apps/v1` names the type of each, as it stands in a list of its own.
            claim["apiVersion"] = "v1".into();
            claim["kind"] = "PersistentVolumeClaim".into();
        }
    }

    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        object["status"] = json!({ "replicas": 0, "availableReplicas": 0 });
        common::first_generation(object);
    }

    fn prepare_for_update(
        &self,
        _: &Context,
        sub: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        common::split_update(sub, object, old, true);
        if sub == Some(Subresource::Status)
            && let Some(status) = object["status"].as_object_mut()
        {
            status.retain(|field, value| *value != 0 || !OPTIONAL_COUNTS.contains(&field.as_str()));
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let spec = &object["spec"];
        let mut errors = spec_errors(spec);
        for (index, template) in items(&spec["volumeClaimTemplates"]) {
            let at = format!("spec.volumeClaimTemplates[{index}].spec");
            volume_claim::validate(&mut errors, &at, &template["spec"]);
        }
        let service = text(&spec["serviceName"]);
        if !service.is_empty() {
            errors.invalid("spec.serviceName", service, dns_label(service));
        }
        errors.0
    }

    fn validate_update(
        &self,
        sub: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        if sub == Some(Subresource::Status) {
            return status_errors(object, old);
        }
        let mut errors = spec_errors(&object["spec"]);
        if !spec_errors(&old["spec"]).0.is_empty() {
            // One from before a rule can still be scaled and deleted.
            errors
                .0
                .retain(|error| !error.field.starts_with("spec.template.spec."));
        }
        let fixed = |spec: &Value| {
            let mut fields = spec.as_object().cloned().unwrap_or_default();
            fields.retain(|field, _| !MUTABLE.contains(&field.as_str()));
            fields
        };
        if fixed(&object["spec"]) != fixed(&old["spec"]) {
            errors.0.push(FieldError::forbidden("spec", IMMUTABLE));
        }
        errors.0
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        warnings::of_workload(object, old)
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Ready Age Containers* Images*")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let count = |value: &Value| value.as_i64().unwrap_or(0);
        let ready = count(&object["status"]["readyReplicas"]);
        let (names, images) = containers_text(&object["spec"]["template"]);
        vec![
            table::name(object),
            format!("{ready}/{}", count(&object["spec"]["replicas"])).into(),
            table::age(object, now),
            names.into(),
            images.into(),
        ]
    }

    fn scale(&self, object: &Value) -> Option<Value> {
        Some(scale_of(object))
    }

    fn set_scale(&self, object: &mut Value, scale: &Value) -> Result<(), ApiError> {
        set_scale(object, scale)
    }
}

fn status_errors(object: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let status = &object["status"];
    let count = |field: &str| status[field].as_i64().unwrap_or(0);
    for field in [
        "replicas",
        "readyReplicas",
        "currentReplicas",
        "updatedReplicas",
        "availableReplicas",
        "observedGeneration",
        "collisionCount",
    ] {
        errors.not_negative(format!("status.{field}"), &status[field]);
    }
    for (field, of) in [
        ("readyReplicas", "replicas"),
        ("currentReplicas", "replicas"),
        ("updatedReplicas", "replicas"),
        ("availableReplicas", "replicas"),
        ("availableReplicas", "readyReplicas"),
    ] {
        if count(field) > count(of) {
            let detail = format!("cannot be greater than status.{of}");
            errors.add(format!("status.{field}"), &status[field], &detail);
        }
    }
    collisions(&mut errors, object, old);
    errors.0
}
