//! Which client owns which field: the stage between decoding and admission, and server-side apply (KEP-555).
//!
//! What admission and strategies change afterwards belongs to nobody, as in kube-apiserver.

use serde_json::Value;

use super::Registry;
use super::operation::{Action, Operation};
use super::table::Table;
use super::write::Target;
use crate::kinds;
use crate::managed::{
    self, Applied, ApplyError, Converted, FieldSet, Manager, PathElement, Stamp, Write,
};
use crate::resource::{Resource, Subresource};
use crate::schema::Schema;
use crate::status::ApiError;
use crate::strategy::{Context, Writing};

/// The fields that a write through one of a resource's endpoints cannot change, and so does not own.
#[derive(Clone, Debug, Default)]
pub struct Reset {
    /// Through the resource itself.
    whole: FieldSet,
    /// Through `status`.
    status: FieldSet,
}

impl Reset {
    /// Those of a kind with this schema and these subresources.
    pub fn of(schema: &Schema, subresources: &[Subresource]) -> Self {
        if !subresources.contains(&Subresource::Status) {
            return Self::default();
        }
        let field = |name: &str| [PathElement::field(name)];
        let mut reset = Self::default();
        for name in schema.root().fields.iter().map(|field| &*field.name) {
            match name {
                "status" => reset.whole.insert(&field(name)),
                "metadata" | "apiVersion" | "kind" => {}
                _ => reset.status.insert(&field(name)),
            }
        }
        reset
    }

    fn through(&self, subresource: Option<Subresource>) -> &FieldSet {
        match subresource {
            Some(Subresource::Status) => &self.status,
            _ => &self.whole,
        }
    }
}

/// An object in the version of another row of the table.
fn converted(table: &Table, resource: &Resource, object: &Value, to: &str) -> Option<Converted> {
    let to = kinds::gvk(to, &resource.gvk.kind);
    let other = table.resources().iter().find(|other| other.gvk == to)?;
    if other.storage_prefix != resource.storage_prefix {
        return None;
    }
    let mut object = object.clone();
    resource.convert(&mut object, &to);
    Some(Converted {
        object,
        schema: Some(other.schema.clone()),
    })
}

impl Registry {
    /// Lets the client own what it wrote. An apply has settled that already.
    pub(super) fn own(&self, operation: &mut Operation) {
        let writes = matches!(operation.action, Action::Create | Action::Update);
        if !writes || !operation.is_whole() || operation.context.writing == Writing::Apply {
            return;
        }
        let Operation { old, new, .. } = operation;
        let (old, mut new) = (old.take(), new.take());
        if let Some(new) = &mut new {
            let (resource, sub) = (&operation.resource, operation.subresource);
            self.owned_by(resource, sub, &operation.context, old.as_ref(), new);
        }
        (operation.old, operation.new) = (old, new);
    }

    /// Lets the client own what is another in `new` than in `old`.
    pub(super) fn owned_by(
        &self,
        resource: &Resource,
        subresource: Option<Subresource>,
        context: &Context,
        old: Option<&Value>,
        new: &mut Value,
    ) {
        let manager = manager(resource, context);
        let table = self.table();
        let write = Write {
            schema: Some(&resource.schema),
            subresource: subresource.map(Subresource::name),
            manager: &manager,
            reset: resource.reset.through(subresource),
            now: &context.now,
            stamp: Stamp::EveryChange,
            convert: &|object, to| converted(&table, resource, object, to),
        };
        managed::updated(&write, old, new);
    }

    /// Applies a configuration to the object that is there, or makes one of it.
    ///
    /// # Errors
    ///
    /// 409 if others own what it would change and it is not forced; 400, 422 or 500 as kube-apiserver for what is no
    /// configuration.
    pub fn applied(
        &self,
        target: &Target,
        subresource: Option<Subresource>,
        context: &Context,
        (live, config): (Option<&Value>, &Value),
        force: bool,
    ) -> Result<Applied, ApiError> {
        let resource = &*target.resource;
        let manager = manager(resource, context);
        let table = self.table();
        let write = Write {
            schema: Some(&resource.schema),
            subresource: subresource.map(Subresource::name),
            manager: &manager,
            reset: resource.reset.through(subresource),
            now: &context.now,
            stamp: Stamp::EveryChange,
            convert: &|object, to| converted(&table, resource, object, to),
        };
        managed::applied(&write, live, config, force).map_err(|error| refused(&error))
    }
}

fn manager(resource: &Resource, context: &Context) -> Manager {
    Manager {
        name: context.client.to_string(),
        api_version: resource.gvk.api_version(),
    }
}

fn refused(error: &ApplyError) -> ApiError {
    let message = error.to_string();
    match error {
        ApplyError::Manager(errors) => ApiError::invalid("meta.k8s.io", "PatchOptions", "", errors),
        ApplyError::Conflicts(conflicts) => {
            let causes = conflicts.causes().into_iter().map(|cause| {
                serde_json::json!({ "reason": cause.reason, "message": cause.message, "field": cause.field })
            });
            let causes: Vec<Value> = causes.collect();
            let mut conflict = ApiError::new(409, "Conflict", message);
            conflict.details = serde_json::json!({ "causes": causes });
            conflict
        }
        _ if error.code() == 400 => ApiError::bad_request(message),
        _ => ApiError::new(500, "", message),
    }
}
