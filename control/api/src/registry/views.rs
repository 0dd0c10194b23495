//! What a subresource shows of an object, and how what is sent to it changes the object.

use serde_json::{Value, json};

use super::meta;
use super::operation::Action;
use super::write::Target;
use crate::kinds;
use crate::resource::{GroupVersionKind, Resource, Subresource};
use crate::status::{ApiError, FieldError};
use crate::strategy::Context;

/// What a client reads and writes at an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The object itself, of which a subresource may change only a part.
    Whole,
    /// How many replicas there are to be: an `autoscaling/v1` Scale.
    Scale,
    /// The node that a pod is given to: a `v1` Binding. It can only be written.
    Binding,
}

impl View {
    /// That of a subresource.
    pub fn of(subresource: Option<Subresource>) -> Self {
        match subresource {
            Some(Subresource::Scale) => Self::Scale,
            Some(Subresource::Binding) => Self::Binding,
            _ => Self::Whole,
        }
    }

    /// What a write to it is, to admission.
    pub fn action(self) -> Action {
        match self {
            Self::Whole | Self::Scale => Action::Update,
            Self::Binding => Action::Create,
        }
    }

    /// The kind of what is read and written.
    pub fn kind(self, resource: &Resource) -> GroupVersionKind {
        match self {
            Self::Whole => resource.gvk.clone(),
            Self::Scale => kinds::gvk("autoscaling/v1", "Scale"),
            Self::Binding => kinds::gvk("v1", "Binding"),
        }
    }

    /// What it shows of an object, where that is not the object itself.
    ///
    /// # Errors
    ///
    /// 404 if the kind has no such thing.
    pub fn shown(self, resource: &Resource, object: &Value) -> Result<Option<Value>, ApiError> {
        match self {
            Self::Whole => Ok(None),
            Self::Scale => {
                let scale = resource.strategy.scale(object);
                scale.map(Some).ok_or_else(ApiError::no_such_path)
            }
            Self::Binding => Ok(Some(json!({}))),
        }
    }

    /// The object, changed by what was sent.
    ///
    /// # Errors
    ///
    /// 422 for what cannot be, 409 for what has been decided otherwise.
    pub fn written(
        self,
        target: &Target,
        object: &Value,
        sent: &Value,
        ctx: &Context,
    ) -> Result<Value, ApiError> {
        let mut object = object.clone();
        match self {
            Self::Whole => object = sent.clone(),
            Self::Scale => target.resource.strategy.set_scale(&mut object, sent)?,
            Self::Binding => bind(target, &mut object, sent, ctx)?,
        }
        Ok(object)
    }
}

/// The node that a binding names.
fn node(target: &Target, binding: &Value) -> Result<String, ApiError> {
    let invalid = |error| ApiError::invalid("", "Binding", &target.name, &[error]);
    let to = &binding["target"];
    let kind = to["kind"].as_str().unwrap_or_default();
    if !matches!(kind, "" | "Node") {
        let known = ["Node", "<empty>"];
        let error = FieldError::not_supported("target.kind", &kind.into(), &known);
        return Err(invalid(error));
    }
    match to["name"].as_str().unwrap_or_default() {
        "" => Err(invalid(FieldError::required("target.name", ""))),
        node => Ok(node.to_owned()),
    }
}

/// Gives a pod to a node (kube-apiserver, `registry/core/pod/storage`).
fn bind(target: &Target, pod: &mut Value, binding: &Value, ctx: &Context) -> Result<(), ApiError> {
    let node = node(target, binding)?;
    let conflict = |detail: &str| {
        let detail = format!("pod {} {detail}", target.name);
        Err(ApiError::conflict(
            "",
            "pods/binding",
            &target.name,
            &detail,
        ))
    };
    if meta::is_terminating(pod) {
        return conflict("is being deleted, cannot be assigned to a host");
    }
    let present = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if !present.is_empty() {
        return conflict(&format!("is already assigned to node {present:?}"));
    }
    let gates = pod["spec"]["schedulingGates"].as_array();
    if gates.is_some_and(|gates| !gates.is_empty()) {
        return conflict("has non-empty .spec.schedulingGates");
    }
    pod["spec"]["nodeName"] = node.into();
    if let Some(annotations) = binding["metadata"]["annotations"].as_object() {
        for (key, value) in annotations {
            pod["metadata"]["annotations"][key] = value.clone();
        }
    }
    let conditions = pod["status"]["conditions"].as_array().cloned();
    let mut conditions = conditions.unwrap_or_default();
    conditions.retain(|condition| condition["type"] != "PodScheduled");
    conditions.push(json!({ "type": "PodScheduled", "status": "True",
        "lastProbeTime": null, "lastTransitionTime": ctx.now }));
    pod["status"]["conditions"] = conditions.into();
    // Wherever room was made for it: it has its node now (KEP-5278).
    if let Some(status) = pod["status"].as_object_mut() {
        status.remove("nominatedNodeName");
    }
    Ok(())
}
