//! Schemas: what a kind's fields are, how they merge and what they default to.
//!
//! Reading order: this file (the model), `load` (from the table that build.rs makes), `decode` (bodies to checked objects),
//! `defaults`, `json` and `yaml` (text to values, noticing duplicates), `protobuf` (both directions). Merging is in [`crate::patch`].

mod decode;
mod defaults;
mod json;
mod load;
pub mod protobuf;
pub mod yaml;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

pub use decode::{Decoded, FieldValidation, Format};
pub(crate) use json::join;

use crate::resource::GroupVersionKind;
use crate::status::ApiError;

/// The schemas of a set of kinds: those of the resources, and of what is only sent (`DeleteOptions`, `Scale`, `Eviction`).
#[derive(Clone, Debug, Default)]
pub struct Schemas {
    kinds: HashMap<GroupVersionKind, Schema>,
}

/// The schema of one kind. Clones share the types.
#[derive(Clone, Debug)]
pub struct Schema {
    types: Arc<[Type]>,
    root: TypeId,
}

/// Names a [`Type`] of a [`Schema`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeId(u32);

/// A type with named fields: a Go struct, or an object of a custom resource.
#[derive(Clone, Debug)]
pub struct Type {
    /// The definition's name: `io.k8s.api.core.v1.PodSpec`.
    pub name: Arc<str>,
    /// Whether a value of it has one owner and changes as a whole (`x-kubernetes-map-type: atomic`).
    pub atomic: bool,
    /// How values of it are read.
    pub reading: Reading,
    /// Its fields, sorted by name.
    pub fields: Box<[Field]>,
}

/// How the fields of a [`Type`] are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// As Go reads a struct: a value of the wrong type is refused; unknown fields, nulls and what Go omits are dropped.
    Strict,
    /// As a custom resource is read: unknown fields are dropped, and values stay as they are, for the rules of the
    /// resource to judge them.
    Pruned,
    /// As [`Reading::Pruned`], and unknown fields stay too (`x-kubernetes-preserve-unknown-fields`).
    Preserved,
}

/// A field of a [`Type`].
#[derive(Clone, Debug)]
pub struct Field {
    /// Its name in JSON.
    pub name: Arc<str>,
    /// What it holds.
    pub shape: Shape,
    /// Whether the schema requires it, so that an empty value of it is kept.
    pub required: bool,
    /// Whether it is a value in Kubernetes' Go types: never absent there, and zero where JSON leaves it out.
    pub by_value: bool,
    /// How several appliers share its items, for a list.
    pub list: ListType,
    /// Whether several appliers share it, for a map: an atomic one has one owner.
    pub atomic: bool,
    /// The keys of its items, for a list of type map.
    pub keys: Box<[Arc<str>]>,
    /// Whether a strategic merge patch merges the list rather than replaces it.
    pub merge: bool,
    /// Whether a strategic merge patch may say which keys remain.
    pub retain_keys: bool,
    /// The key by which a strategic merge patch finds items; empty for lists of scalars.
    pub merge_key: Arc<str>,
    /// What it is when absent.
    pub default: FieldDefault,
}

/// What a field, an item of a list or a value of a map holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A string.
    String,
    /// A 32-bit integer.
    Int32,
    /// A 64-bit integer.
    Int64,
    /// A number.
    Number,
    /// `true` or `false`.
    Bool,
    /// A time in RFC 3339, with seconds.
    Time,
    /// A time in RFC 3339, with microseconds.
    MicroTime,
    /// Bytes in base64.
    Bytes,
    /// A quantity such as `1500m`.
    Quantity,
    /// A 32-bit integer or a string.
    IntOrString,
    /// Anything, kept as it is.
    Any,
    /// A type of its own.
    Object(TypeId),
    /// A list.
    List(Box<Shape>),
    /// A map from strings.
    Map(Box<Shape>),
}

/// How the items of a list are told apart (`x-kubernetes-list-type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    /// Not at all: the list changes as a whole.
    Atomic,
    /// By their value.
    Set,
    /// By their keys.
    Map,
}

/// The default of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldDefault {
    /// None.
    None,
    /// This, where the field is missing.
    Missing(Value),
    /// This, where the field is missing or zero: in Kubernetes' types it is no pointer.
    Zero(Value),
    /// A rule that looks at the object around the field.
    Rule(Rule),
}

/// A default that depends on the object that holds the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// `Always` for images without a tag or with `latest`, else `IfNotPresent`.
    ImagePullPolicy,
    /// A volume without a source is an empty directory.
    EmptyDir,
    /// A service's target port is its port.
    TargetPort,
    /// Parameters of a rolling update exist where the type asks for one.
    RollingUpdate,
    /// As the last, but only where no type was chosen: a stateful set whose type is `RollingUpdate` keeps what it has.
    RollingUpdateIfUntyped,
    /// The API group of an RBAC subject by its kind.
    SubjectGroup,
}

impl Schemas {
    /// The schemas of the built-in kinds, unpacked at first use and shared from then on.
    pub fn builtin() -> Arc<Self> {
        static BUILTIN: OnceLock<Arc<Schemas>> = OnceLock::new();
        let unpacked = || Arc::new(load::builtin());
        BUILTIN.get_or_init(unpacked).clone()
    }

    /// The schema of a kind.
    pub fn find(&self, gvk: &GroupVersionKind) -> Option<&Schema> {
        self.kinds.get(gvk)
    }

    /// Adds the schema of a kind, or puts it in the place of another.
    pub fn insert(&mut self, gvk: GroupVersionKind, schema: Schema) {
        self.kinds.insert(gvk, schema);
    }

    /// Reads a request's body as an object of the kind `gvk`.
    ///
    /// Checks types, drops nulls and unknown fields, brings quantities and times to their canonical form, fills in
    /// `kind` and `apiVersion`. Unknown and duplicate fields are refused, reported or passed over, as `mode` says.
    ///
    /// # Errors
    ///
    /// 400 in kube-apiserver's words.
    pub fn decode(
        &self,
        gvk: &GroupVersionKind,
        body: &[u8],
        format: Format,
        mode: FieldValidation,
    ) -> Result<Decoded, ApiError> {
        decode::decode(self, gvk, body, format, mode)
    }

    /// As [`Schemas::decode`], of an object that is parsed already (the result of a patch).
    ///
    /// # Errors
    ///
    /// 400 in kube-apiserver's words.
    pub fn check(
        &self,
        gvk: &GroupVersionKind,
        object: Value,
        mode: FieldValidation,
    ) -> Result<Decoded, ApiError> {
        decode::check(self, gvk, object, mode)
    }

    /// Reads a body in protobuf as an object of the kind `gvk`, as it was sent: [`Schemas::check`] comes next.
    ///
    /// # Errors
    ///
    /// 400 for what is no such message.
    pub fn decode_protobuf(&self, gvk: &GroupVersionKind, body: &[u8]) -> Result<Value, ApiError> {
        protobuf::decode(self.find(gvk), gvk, body)
    }

    /// Fills in the defaults of every field of the object.
    pub fn apply_defaults(&self, gvk: &GroupVersionKind, object: &mut Value) {
        if let Some(schema) = self.find(gvk) {
            schema.apply_defaults(object);
        }
    }
}

impl Schema {
    /// A schema of these types, of which `root` is the kind's own.
    ///
    /// # Panics
    ///
    /// If `root` names no type: whoever joins types makes both.
    pub fn new(types: Vec<Type>, root: TypeId) -> Self {
        assert!(
            (root.0 as usize) < types.len(),
            "the root is one of the types"
        );
        let types = types.into();
        Self { types, root }
    }

    /// The type of the kind itself.
    pub fn root(&self) -> &Type {
        self.get(self.root)
    }

    /// The kind itself, by its id.
    pub fn root_id(&self) -> TypeId {
        self.root
    }

    /// A type by its id.
    pub fn get(&self, id: TypeId) -> &Type {
        &self.types[id.0 as usize]
    }

    /// Fills in the defaults of every field of the object.
    pub fn apply_defaults(&self, object: &mut Value) {
        defaults::apply(self, self.root, object);
    }
}

impl TypeId {
    /// The name of the type at a place in the list that [`Schema::new`] takes.
    ///
    /// # Panics
    ///
    /// Beyond four billion types.
    pub fn new(index: usize) -> Self {
        Self(u32::try_from(index).expect("a schema has few types"))
    }
}

impl Type {
    /// A field by its name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields
            .binary_search_by(|field| (*field.name).cmp(name))
            .ok()
            .map(|index| &self.fields[index])
    }

    /// The name of the Go type without its package: `PodSpec`.
    pub fn go_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }

    /// The name of the Go type with its package: `v1.PodSpec`.
    pub fn go_type(&self) -> &str {
        let mut dots = self.name.rmatch_indices('.');
        dots.next();
        dots.next()
            .map_or(&*self.name, |(index, _)| &self.name[index + 1..])
    }
}
