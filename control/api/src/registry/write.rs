//! Writes: create, update and patch, the same for every kind.
//!
//! What is special about a kind is in its strategy, what a subresource shows of an object in `views`; what needs to look at other
//! objects is in `admission`.

use std::sync::Arc;

use bytes::Bytes;
use knarr_store::{Compare, Durability, KeyValue, Op, Revision, StoreError, TxnOutcome};
use serde_json::Value;

use super::collection::Collection;
use super::entry::{self, ChangeType, Entry};
use super::operation::{Action, Operation};
use super::services::Allocation;
use super::views::View;
use super::{Registry, meta};
use crate::resource::{Resource, Subresource};
use crate::status::{ApiError, FieldError};
use crate::strategy::Context;

/// How often a write without a resourceVersion is tried again when another came first.
pub(super) const RETRIES: usize = 64;
/// How many names are made up for an object before none is free (kube-apiserver's own number).
const NAMES: usize = 8;

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

    pub(super) fn modified(&self) -> ApiError {
        self.conflict(
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// The object that a lost compare-and-swap found in the place of the one that was expected; none if there is none any more.
    ///
    /// It need not have reached the collection yet, and with several servers may come from another.
    fn beaten(&self, now: Vec<Option<KeyValue>>) -> Result<Option<Arc<Entry>>, ApiError> {
        let Some(kv) = now.into_iter().next().flatten() else {
            return Ok(None);
        };
        let strategy = &*self.resource.strategy;
        let (entry, _) = Entry::new(&self.key(), &kv, strategy, ChangeType::Modified)
            .map_err(|error| ApiError::internal(&error))?;
        Ok(Some(Arc::new(entry)))
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

/// What became of a try.
pub(super) enum Tried<T> {
    /// It was carried out.
    Done(T),
    /// Another write came first, and left this.
    Beaten(Option<Arc<Entry>>),
}

/// Every stage hands on what it got.
fn lost() -> ApiError {
    ApiError::new(
        500,
        "InternalError",
        "an admission plugin dropped the object",
    )
}

/// A change of an object, computed from its present state; called again when another write came first.
pub type Change<'a> = dyn Fn(&Value) -> Result<Value, ApiError> + Send + Sync + 'a;

impl Registry {
    /// Creates an object that was decoded already. A name that the server makes up is made up anew if somebody has it.
    ///
    /// # Errors
    ///
    /// As kube-apiserver: 404 or 403 for its namespace, 409 if it exists, 422 if it is invalid.
    pub async fn create(
        &self,
        target: &Target,
        object: Value,
        ctx: &Context,
    ) -> Result<Written, ApiError> {
        let generated = meta::text(&object, "name").is_empty()
            && !meta::text(&object, "generateName").is_empty();
        for _ in 1..if generated { NAMES } else { 1 } {
            let operation = Operation::new(Action::Create, target, ctx);
            if let Ok(written) = self.create_once(target, object.clone(), operation).await? {
                return Ok(written);
            }
        }
        let operation = Operation::new(Action::Create, target, ctx);
        let taken = match self.create_once(target, object, operation).await? {
            Ok(written) => return Ok(written),
            Err(taken) => taken,
        };
        if generated {
            let message = format!(
                "{}, the server was not able to generate a unique name for the object",
                taken.message
            );
            return Err(ApiError { message, ..taken });
        }
        Err(taken)
    }

    /// One try; the inner error if the name is taken.
    async fn create_once(
        &self,
        target: &Target,
        mut object: Value,
        mut operation: Operation,
    ) -> Result<Result<Written, ApiError>, ApiError> {
        let resource = &target.resource;
        let strategy = &resource.strategy;
        meta::prepare_new(
            resource,
            &target.namespace,
            &operation.context.now,
            &mut object,
        )?;
        let warning = meta::drop_repeated_owners(&mut object);
        operation.warnings.extend(warning);
        meta::text(&object, "name").clone_into(&mut operation.name);
        operation.new = Some(object);
        self.mutate(&mut operation).await?;
        let object = operation.new.as_mut().ok_or_else(lost)?;
        strategy.prepare_for_create(&operation.context, object);
        let mut errors = meta::validate(resource, object);
        errors.extend(strategy.validate(object));
        let name = meta::text(object, "name").to_owned();
        if !errors.is_empty() {
            return Err(target.invalid(&name, &errors));
        }
        self.judge(&mut operation).await?;
        let Operation {
            new,
            mut warnings,
            context,
            ..
        } = operation;
        let mut object = new.ok_or_else(lost)?;
        let key = key(&target.namespace, &name);
        warnings.extend(strategy.warnings(&object, None));
        let exists = || ApiError::already_exists(&resource.gvk.group, &resource.plural, &name);
        let store_key = target.collection.store_key(&key);
        for _ in 0..RETRIES {
            let again = strategy.holds_addresses().then(|| object.clone());
            let allocation = self.services.allocate(target, &mut object, None)?;
            let value: Bytes = entry::encode(&stored_version(resource, object)).into();
            if context.dry_run {
                if target.collection.get(&key).is_some() {
                    return Ok(Err(exists()));
                }
                return Ok(Ok(Written {
                    object: value,
                    created: true,
                    warnings,
                }));
            }
            let (compares, ops) = allocation.with(
                Compare::Absent(store_key.clone()),
                Op::Put(store_key.clone(), value.clone()),
            );
            match (self.commit(compares.clone(), ops).await?, again) {
                (TxnOutcome::Committed(revision), _) => {
                    return Ok(Ok(Written {
                        object: entry::splice(&value, revision),
                        created: true,
                        warnings,
                    }));
                }
                (TxnOutcome::Conflict(now), Some(unallocated))
                    if Allocation::was_beaten(&compares, &now) =>
                {
                    self.caught_up().await;
                    object = unallocated;
                }
                (TxnOutcome::Conflict(_), _) => return Ok(Err(exists())),
            }
        }
        Err(target.modified())
    }

    /// Changes an object or one of its subresources.
    ///
    /// The change sees the present object as the subresource shows it; the result's resourceVersion, if it has one, must be the
    /// present one. A change that changes nothing writes nothing.
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
        let mut present = target.collection.get(&key);
        for _ in 0..RETRIES {
            let entry = present.ok_or_else(|| target.not_found())?;
            match self
                .update_from(target, subresource, &entry, change, ctx)
                .await?
            {
                Tried::Done(written) => return Ok(written),
                Tried::Beaten(by) => present = by,
            }
        }
        Err(target.modified())
    }

    async fn update_from(
        &self,
        target: &Target,
        subresource: Option<Subresource>,
        present: &Arc<Entry>,
        change: &Change<'_>,
        ctx: &Context,
    ) -> Result<Tried<Written>, ApiError> {
        let resource = &target.resource;
        let strategy = &resource.strategy;
        let view = View::of(subresource);
        let mut old = present.parse();
        if resource.storage_version.is_some() {
            resource.convert(&mut old, &resource.gvk);
        }
        let mut operation = Operation::new(view.action(), target, ctx);
        operation.subresource = subresource;
        operation.kind = view.kind(resource);
        let shown = view.shown(resource, &old)?;
        let mut new = change(shown.as_ref().unwrap_or(&old))?;
        self.check_identity(target, &new, present)?;
        meta::metadata(&mut old).remove("resourceVersion");
        let whole = view == View::Whole;
        if whole {
            meta::metadata(&mut new).remove("resourceVersion");
            meta::prepare_changed(&mut new, &old);
            let warning = meta::drop_repeated_owners(&mut new);
            operation.warnings.extend(warning);
        }
        operation.new = Some(new);
        // The plugins see the object as it was, whose place it has here meanwhile.
        operation.old = Some(shown.unwrap_or_else(|| std::mem::take(&mut old)));
        self.mutate(&mut operation).await?;
        let mut object = if whole {
            old = operation.old.take().ok_or_else(lost)?;
            operation.new.take().ok_or_else(lost)?
        } else {
            let sent = operation.new.as_ref().ok_or_else(lost)?;
            let mut object = view.written(target, &old, sent, ctx)?;
            if view == View::Scale {
                self.owned_by(resource, subresource, ctx, Some(&old), &mut object);
            }
            object
        };
        strategy.prepare_for_update(ctx, subresource, &mut object, &old);
        let mut errors = meta::validate(resource, &object);
        errors.extend(meta::validate_changed(&object, &old));
        errors.extend(strategy.validate_update(subresource, &object, &old));
        if !errors.is_empty() {
            return Err(target.invalid(&target.name, &errors));
        }
        if whole {
            (operation.new, operation.old) = (Some(object), Some(old));
            self.judge(&mut operation).await?;
            object = operation.new.take().ok_or_else(lost)?;
            old = operation.old.take().ok_or_else(lost)?;
        } else {
            self.judge(&mut operation).await?;
        }
        let mut warnings = operation.warnings;
        let mut allocation = Allocation::default();
        if subresource.is_none() {
            warnings.extend(strategy.warnings(&object, Some(&old)));
            allocation = self.services.allocate(target, &mut object, Some(&old))?;
        }
        if object == old {
            return Ok(Tried::Done(Written {
                object: present.object.clone(),
                created: false,
                warnings,
            }));
        }
        let gone = is_gone(resource, &object);
        let durability = if !gone && strategy.is_renewal(&object, &old) {
            Durability::Deferred
        } else {
            Durability::Immediate
        };
        let value: Bytes = entry::encode(&stored_version(resource, object)).into();
        if ctx.dry_run {
            let object = entry::splice(&value, present.revision);
            return Ok(Tried::Done(Written {
                object,
                created: false,
                warnings,
            }));
        }
        let store_key = target.collection.store_key(&present.key);
        let compare = Compare::ModRevision(store_key.clone(), present.revision);
        let op = if gone {
            allocation = self.services.release(target, &old);
            Op::Delete(store_key)
        } else {
            Op::Put(store_key, value.clone())
        };
        let (compares, ops) = allocation.with(compare, op);
        match self.commit_with(compares.clone(), ops, durability).await? {
            TxnOutcome::Committed(revision) => Ok(Tried::Done(Written {
                object: entry::splice(&value, revision),
                created: false,
                warnings,
            })),
            TxnOutcome::Conflict(now) => self.beaten(target, present, &compares, now).await,
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

    /// What to try a change from again that lost.
    pub(super) async fn beaten<T>(
        &self,
        target: &Target,
        present: &Arc<Entry>,
        compares: &[Compare],
        now: Vec<Option<KeyValue>>,
    ) -> Result<Tried<T>, ApiError> {
        if Allocation::was_beaten(compares, &now) {
            self.caught_up().await;
            return Ok(Tried::Beaten(Some(present.clone())));
        }
        target.beaten(now).map(Tried::Beaten)
    }

    /// Waits for what others have taken or given back to be seen here.
    async fn caught_up(&self) {
        self.feed.reached(self.store.revision()).await;
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
}

/// A store's refusal, as the API words it.
pub fn store_error(error: &StoreError) -> ApiError {
    match error {
        StoreError::NoSpace { .. } => ApiError {
            code: 507,
            reason: "InsufficientStorage",
            ..ApiError::internal(error)
        },
        StoreError::Closed | StoreError::Failed { .. } => {
            ApiError::new(503, "ServiceUnavailable", "the server is shutting down")
        }
        _ => ApiError::internal(error),
    }
}

/// The object in the version in which it is stored.
pub fn stored_version(resource: &Resource, mut object: Value) -> Value {
    if let Some(stored) = &resource.storage_version {
        resource.convert(&mut object, stored);
    }
    object
}

/// Whether nothing holds a deleted object any more: no finalizer, no grace, nothing in its spec.
pub fn is_gone(resource: &Resource, object: &Value) -> bool {
    meta::is_terminating(object)
        && meta::finalizers(object).is_empty()
        && object["metadata"]["deletionGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(0)
            == 0
        && !resource.strategy.holds(object)
}
