//! Writes: create, update and patch, the same for every kind.
//!
//! What is special about a kind is in its strategy; what needs to look at other objects is in `admission`.

use std::sync::Arc;

use bytes::Bytes;
use knarr_store::{Compare, Durability, Op, Revision, StoreError, TxnOutcome};
use serde_json::Value;

use super::collection::Collection;
use super::entry::{self, Entry};
use super::{Registry, meta};
use crate::resource::{Resource, Subresource};
use crate::schema::Schemas;
use crate::status::{ApiError, FieldError};
use crate::strategy::Context;

/// How often a write without a resourceVersion is tried again when another came first.
const RETRIES: usize = 64;

/// Which object a request is about.
#[derive(Clone)]
pub struct Target {
    /// Its resource.
    pub resource: Arc<Resource>,
    /// Where its objects are.
    pub collection: Arc<Collection>,
    /// The namespace; empty for objects of the cluster.
    pub namespace: String,
    /// The name; empty for a creation.
    pub name: String,
}

impl Target {
    /// The object's key in its collection.
    pub fn key(&self) -> String {
        key(&self.namespace, &self.name)
    }

    /// 404 for this object.
    pub fn not_found(&self) -> ApiError {
        ApiError::not_found(&self.resource.gvk.group, &self.resource.plural, &self.name)
    }

    /// 409 for this object.
    pub fn conflict(&self, detail: &str) -> ApiError {
        ApiError::conflict(
            &self.resource.gvk.group,
            &self.resource.plural,
            &self.name,
            detail,
        )
    }

    fn modified(&self) -> ApiError {
        self.conflict(
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    fn invalid(&self, name: &str, errors: &[FieldError]) -> ApiError {
        ApiError::invalid(
            &self.resource.gvk.group,
            &self.resource.gvk.kind,
            name,
            errors,
        )
    }
}

/// `namespace/name`, or the name alone.
pub fn key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() {
        name.to_owned()
    } else {
        format!("{namespace}/{name}")
    }
}

/// What a write left behind.
#[derive(Clone, Debug)]
pub struct Written {
    /// The object as it is now (or, of a dry run, would be), in the version it is stored in.
    pub object: Bytes,
    /// Whether it did not exist before.
    pub created: bool,
    /// For `Warning` headers.
    pub warnings: Vec<String>,
}

/// A change of an object, computed from its present state; called again when another write came first.
pub type Change<'a> = dyn Fn(&Value) -> Result<Value, ApiError> + Send + Sync + 'a;

impl Registry {
    /// Creates an object that was decoded already.
    ///
    /// # Errors
    ///
    /// As kube-apiserver: 404 or 403 for its namespace, 409 if it exists, 422 if it is invalid.
    pub async fn create(
        &self,
        target: &Target,
        mut object: Value,
        ctx: &Context,
    ) -> Result<Written, ApiError> {
        let resource = &target.resource;
        let generated = meta::text(&object, "name").is_empty()
            && !meta::text(&object, "generateName").is_empty();
        Schemas::builtin().apply_defaults(&resource.gvk, &mut object);
        resource.strategy.default(&mut object);
        meta::prepare_new(resource, &target.namespace, &ctx.now, &mut object)?;
        self.admit_new(target, &mut object, ctx).await?;
        resource.strategy.prepare_for_create(ctx, &mut object);
        let mut errors = meta::validate(resource, &object);
        errors.extend(resource.strategy.validate(&object));
        let name = meta::text(&object, "name").to_owned();
        if !errors.is_empty() {
            return Err(target.invalid(&name, &errors));
        }
        let reserved = self
            .services
            .reserve(target, &mut object, None, ctx.dry_run)?;
        let key = key(&target.namespace, &name);
        let warnings = resource.strategy.warnings(&object);
        let value: Bytes = entry::encode(&stored_version(resource, object)).into();
        let exists = || {
            let error = ApiError::already_exists(&resource.gvk.group, &resource.plural, &name);
            if generated {
                ApiError {
                    message: format!(
                        "{}, the server was not able to generate a unique name for the object",
                        error.message
                    ),
                    ..error
                }
            } else {
                error
            }
        };
        if ctx.dry_run {
            if target.collection.get(&key).is_some() {
                return Err(exists());
            }
            return Ok(Written {
                object: value,
                created: true,
                warnings,
            });
        }
        let store_key = target.collection.store_key(&key);
        let compares = vec![Compare::Absent(store_key.clone())];
        match self
            .commit(compares, vec![Op::Put(store_key, value.clone())])
            .await?
        {
            TxnOutcome::Committed(revision) => {
                reserved.keep();
                Ok(Written {
                    object: entry::splice(&value, revision),
                    created: true,
                    warnings,
                })
            }
            TxnOutcome::Conflict(_) => Err(exists()),
        }
    }

    /// Changes an object or one of its subresources.
    ///
    /// The change sees the present object; the result's resourceVersion, if it has one, must be the present one. A change
    /// that changes nothing writes nothing.
    ///
    /// # Errors
    ///
    /// As kube-apiserver: 404, 409 if the resourceVersion is not the present one, 422 if the result is invalid.
    pub async fn update(
        &self,
        target: &Target,
        subresource: Option<Subresource>,
        change: &Change<'_>,
        ctx: &Context,
    ) -> Result<Written, ApiError> {
        let key = target.key();
        for _ in 0..RETRIES {
            let present = target
                .collection
                .get(&key)
                .ok_or_else(|| target.not_found())?;
            if let Some(written) = self
                .update_from(target, subresource, &present, change, ctx)
                .await?
            {
                return Ok(written);
            }
        }
        Err(target.modified())
    }

    /// One try; `None` if another write came first.
    async fn update_from(
        &self,
        target: &Target,
        subresource: Option<Subresource>,
        present: &Arc<Entry>,
        change: &Change<'_>,
        ctx: &Context,
    ) -> Result<Option<Written>, ApiError> {
        let resource = &target.resource;
        let mut old = present.parse();
        if resource.storage_version.is_some() {
            crate::kinds::convert(&mut old, &resource.gvk);
        }
        let mut object = change(&old)?;
        self.check_identity(target, &object, present)?;
        Schemas::builtin().apply_defaults(&resource.gvk, &mut object);
        resource.strategy.default(&mut object);
        meta::metadata(&mut object).remove("resourceVersion");
        meta::metadata(&mut old).remove("resourceVersion");
        meta::prepare_changed(&mut object, &old);
        resource
            .strategy
            .prepare_for_update(ctx, subresource, &mut object, &old);
        self.admit_changed(target, subresource, &mut object, &old, ctx)?;
        let mut errors = meta::validate(resource, &object);
        errors.extend(meta::validate_changed(&object, &old));
        errors.extend(
            resource
                .strategy
                .validate_update(subresource, &object, &old),
        );
        if !errors.is_empty() {
            return Err(target.invalid(&target.name, &errors));
        }
        let reserved = if subresource.is_none() {
            self.services
                .reserve(target, &mut object, Some(&old), ctx.dry_run)?
        } else {
            super::services::Reservation::default()
        };
        let warnings = resource.strategy.warnings(&object);
        if object == old {
            return Ok(Some(Written {
                object: present.object.clone(),
                created: false,
                warnings,
            }));
        }
        let gone = is_gone(resource, &object);
        let durability = if !gone && resource.strategy.is_renewal(&object, &old) {
            Durability::Deferred
        } else {
            Durability::Immediate
        };
        let value: Bytes = entry::encode(&stored_version(resource, object)).into();
        if ctx.dry_run {
            let object = entry::splice(&value, present.revision);
            return Ok(Some(Written {
                object,
                created: false,
                warnings,
            }));
        }
        let store_key = target.collection.store_key(&present.key);
        let compares = vec![Compare::ModRevision(store_key.clone(), present.revision)];
        let op = if gone {
            Op::Delete(store_key)
        } else {
            Op::Put(store_key, value.clone())
        };
        match self.commit_with(compares, vec![op], durability).await? {
            TxnOutcome::Committed(revision) => {
                reserved.keep();
                if gone {
                    self.services.release(target, &present.parse());
                }
                Ok(Some(Written {
                    object: entry::splice(&value, revision),
                    created: false,
                    warnings,
                }))
            }
            TxnOutcome::Conflict(_) => {
                self.caught_up().await;
                Ok(None)
            }
        }
    }

    fn check_identity(
        &self,
        target: &Target,
        object: &Value,
        present: &Entry,
    ) -> Result<(), ApiError> {
        let version = meta::text(object, "resourceVersion");
        let uid = meta::text(object, "uid");
        if !uid.is_empty() && uid != &*present.uid {
            return Err(target.conflict(&format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                present.uid
            )));
        }
        if version.is_empty() {
            if target.resource.strategy.require_resource_version() {
                return Err(target.invalid(
                    &target.name,
                    &[FieldError::invalid(
                        "metadata.resourceVersion",
                        &"".into(),
                        "must be specified for an update",
                    )],
                ));
            }
            return Ok(());
        }
        match version.parse::<Revision>() {
            Ok(0) => Ok(()),
            Ok(version) if version == present.revision => Ok(()),
            Ok(_) => Err(target.modified()),
            Err(_) => Err(ApiError::bad_request(format!(
                "invalid resource version {version:?}"
            ))),
        }
    }

    /// Carries out a transaction durably, and waits until every collection shows it.
    ///
    /// # Errors
    ///
    /// 500 if the store refuses, 507 if the disk is full.
    pub async fn commit(
        &self,
        compares: Vec<Compare>,
        ops: Vec<Op>,
    ) -> Result<TxnOutcome, ApiError> {
        self.commit_with(compares, ops, Durability::Immediate).await
    }

    async fn commit_with(
        &self,
        compares: Vec<Compare>,
        ops: Vec<Op>,
        durability: Durability,
    ) -> Result<TxnOutcome, ApiError> {
        let outcome = self
            .store
            .txn(compares, ops, durability)
            .await
            .map_err(|error| store_error(&error))?;
        if let TxnOutcome::Committed(revision) = &outcome {
            self.feed.reached(*revision).await;
        }
        Ok(outcome)
    }

    /// Waits for whatever made a compare fail to arrive in the collections.
    pub(super) async fn caught_up(&self) {
        self.feed.reached(self.store.revision()).await;
    }
}

/// A store's refusal, as the API words it.
pub fn store_error(error: &StoreError) -> ApiError {
    match error {
        StoreError::NoSpace { .. } => ApiError {
            code: 507,
            reason: "InsufficientStorage",
            ..ApiError::internal(error)
        },
        StoreError::Closed => {
            ApiError::new(503, "ServiceUnavailable", "the server is shutting down")
        }
        _ => ApiError::internal(error),
    }
}

/// The object in the version in which it is stored.
pub fn stored_version(resource: &Resource, mut object: Value) -> Value {
    if let Some(stored) = &resource.storage_version {
        crate::kinds::convert(&mut object, stored);
    }
    object
}

/// Whether nothing holds a deleted object any more: no finalizer, no grace, and of a namespace no content.
pub fn is_gone(resource: &Resource, object: &Value) -> bool {
    meta::is_terminating(object)
        && meta::finalizers(object).is_empty()
        && object["metadata"]["deletionGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(0)
            == 0
        && (resource.gvk.kind != "Namespace"
            || object["spec"]["finalizers"]
                .as_array()
                .is_none_or(Vec::is_empty))
}
