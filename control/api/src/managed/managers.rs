//! The entries of `metadata.managedFields`: who owns what, in which version, since when.
//!
//! Source: apimachinery `util/managedfields/internal` (`managedfields.go`, `capmanagers.go`).

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::fields_v1::{FieldSetError, MAX_ELEMENTS};
use super::manager::{Identity, Manager, Operation};
use super::set::FieldSet;

/// How many entries an object may have.
pub const MAX_ENTRIES: usize = 1024;

/// How many entries of updates an object keeps; the oldest beyond become one.
pub const MAX_UPDATE_ENTRIES: usize = 10;

/// The manager of the fields of the oldest updates.
const ANCIENT: &str = "ancient-changes";

/// What a client owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The version in which the fields are named.
    pub api_version: String,
    /// When it last wrote; RFC 3339 with seconds, in UTC.
    pub time: Option<String>,
    /// The fields.
    pub set: FieldSet,
}

/// All entries of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Managers {
    /// By what tells them apart.
    pub entries: BTreeMap<Identity, Entry>,
}

/// Why a list is no `metadata.managedFields`.
#[derive(Debug, thiserror::Error)]
pub enum ManagedFieldsError {
    /// It is no list.
    #[error("metadata.managedFields is not a list")]
    NoList,
    /// An item is no object.
    #[error("managed fields entry {index} is not an object")]
    NoObject {
        /// Which.
        index: usize,
    },
    /// It is too long.
    #[error("metadata.managedFields has more than {MAX_ENTRIES} entries")]
    TooMany,
    /// An operation that does not exist.
    #[error("operation must be `Apply` or `Update`")]
    Operation,
    /// An entry without a version.
    #[error("apiVersion must not be empty")]
    NoVersion,
    /// An entry without a type.
    #[error("missing fieldsType in managed fields entry {index}")]
    NoType {
        /// Which.
        index: usize,
    },
    /// A type that does not exist.
    #[error("invalid fieldsType {found:?} in managed fields entry {index}")]
    Type {
        /// Which entry.
        index: usize,
        /// What it says.
        found: String,
    },
    /// The fields of an entry.
    #[error("error decoding the fields of managed fields entry {index}")]
    Fields {
        /// Which.
        index: usize,
        /// Why.
        source: FieldSetError,
    },
}

impl Managers {
    /// Reads `metadata.managedFields`. Of two entries of one identity the later counts.
    ///
    /// # Errors
    ///
    /// For an entry that is none, and beyond [`MAX_ENTRIES`] and the limits of [`FieldSet`], which all entries share.
    pub fn parse(list: &Value) -> Result<Self, ManagedFieldsError> {
        let list = list.as_array().ok_or(ManagedFieldsError::NoList)?;
        if list.len() > MAX_ENTRIES {
            return Err(ManagedFieldsError::TooMany);
        }
        let mut left = MAX_ELEMENTS;
        let mut managers = Self::default();
        for (index, entry) in list.iter().enumerate() {
            if !entry.is_object() {
                return Err(ManagedFieldsError::NoObject { index });
            }
            let operation = match text(entry, "operation") {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return Err(ManagedFieldsError::Operation),
            };
            let api_version = match text(entry, "apiVersion") {
                "" => return Err(ManagedFieldsError::NoVersion),
                version => version.to_owned(),
            };
            match text(entry, "fieldsType") {
                "FieldsV1" => {}
                "" => return Err(ManagedFieldsError::NoType { index }),
                other => {
                    return Err(ManagedFieldsError::Type {
                        index,
                        found: other.to_owned(),
                    });
                }
            }
            let set = match entry.get("fieldsV1") {
                None | Some(Value::Null) => FieldSet::default(),
                Some(fields) => FieldSet::parse_within(fields, &mut left)
                    .map_err(|source| ManagedFieldsError::Fields { index, source })?,
            };
            let manager = Manager {
                name: text(entry, "manager").to_owned(),
                api_version,
            };
            let identity = Identity::new(&manager, operation, Some(text(entry, "subresource")));
            let time = entry.get("time").and_then(Value::as_str).map(str::to_owned);
            managers.entries.insert(
                identity,
                Entry {
                    api_version: manager.api_version,
                    time,
                    set,
                },
            );
        }
        Ok(managers)
    }

    /// The list for `metadata.managedFields`, in Kubernetes' order; none if there are no entries.
    pub fn to_value(&self) -> Option<Value> {
        if self.entries.is_empty() {
            return None;
        }
        let mut list: Vec<Value> = self
            .entries
            .iter()
            .map(|(identity, entry)| entry.to_value(identity))
            .collect();
        sort(&mut list);
        Some(Value::Array(list))
    }

    /// Whether both say the same, whatever their times.
    pub(super) fn is_same_but_times(&self, other: &Self) -> bool {
        let is_same =
            |((identity, entry), (other, with)): ((&Identity, &Entry), (&Identity, &Entry))| {
                identity == other && entry.api_version == with.api_version && entry.set == with.set
            };
        self.entries.len() == other.entries.len()
            && self.entries.iter().zip(&other.entries).all(is_same)
    }

    /// Drops the entries that own nothing.
    pub(super) fn drop_empty(&mut self) {
        self.entries.retain(|_, entry| !entry.set.is_empty());
    }

    /// Puts the fields of the oldest updates together, version by version, until few enough entries remain.
    pub(super) fn cap(&mut self) {
        let is_update = |identity: &&Identity| identity.operation == Operation::Update;
        let mut updates: Vec<Identity> = self.entries.keys().filter(is_update).cloned().collect();
        let mut excess = updates.len().saturating_sub(MAX_UPDATE_ENTRIES);
        if excess == 0 {
            return;
        }
        updates.sort_by(|left, right| {
            self.entries[left]
                .time
                .cmp(&self.entries[right].time)
                .then(left.cmp(right))
        });
        let mut first_of: BTreeMap<String, Identity> = BTreeMap::new();
        for identity in updates {
            if excess == 0 {
                break;
            }
            let version = self.entries[&identity].api_version.clone();
            let Some(first) = first_of.get(&version) else {
                first_of.insert(version, identity);
                continue;
            };
            let manager = Manager {
                name: ANCIENT.to_owned(),
                api_version: version,
            };
            let bucket = Identity::new(&manager, Operation::Update, None);
            if !self.entries.contains_key(&bucket)
                && let Some(entry) = self.entries.remove(first)
            {
                self.entries.insert(bucket.clone(), entry);
            }
            if identity == bucket {
                continue;
            }
            if let (Some(merged), Some(into)) = (
                self.entries.remove(&identity),
                self.entries.get_mut(&bucket),
            ) {
                into.set = into.set.union(&merged.set);
                into.time = merged.time;
                excess -= 1;
            }
        }
    }
}

impl Entry {
    fn to_value(&self, identity: &Identity) -> Value {
        let mut entry = Map::new();
        let texts = [
            ("manager", identity.manager.as_str()),
            ("operation", identity.operation.as_str()),
            ("apiVersion", &self.api_version),
            ("time", self.time.as_deref().unwrap_or_default()),
            ("fieldsType", "FieldsV1"),
            ("subresource", &identity.subresource),
        ];
        for (name, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
            entry.insert(name.to_owned(), text.into());
        }
        entry.insert("fieldsV1".to_owned(), self.set.to_value());
        Value::Object(entry)
    }
}

/// Brings entries to Kubernetes' order: appliers first, then by time, name, version and subresource.
pub(super) fn sort(list: &mut [Value]) {
    let by = |left: &Value, right: &Value| {
        ["operation", "time", "manager", "apiVersion", "subresource"]
            .into_iter()
            .map(|name| text(left, name).cmp(text(right, name)))
            .find(|order| order.is_ne())
            .unwrap_or(Ordering::Equal)
    };
    list.sort_by(by);
}

/// Whether a client asks to forget all entries: with an empty list, or with one empty entry.
pub(super) fn is_reset(list: &Value) -> bool {
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    match list.as_array().map(Vec::as_slice) {
        Some([]) => true,
        Some([Value::Object(entry)]) => entry.values().all(is_empty),
        _ => false,
    }
}

/// The entries of an object, as they are.
pub(super) fn of(object: &Value) -> Option<&Value> {
    object
        .get("metadata")?
        .get("managedFields")
        .filter(|list| !list.is_null())
}

/// Puts entries into the object in the place of those it has. An object without metadata has no entries either.
pub(super) fn put(object: &mut Value, list: Option<Value>) {
    let Some(Value::Object(metadata)) = object.get_mut("metadata") else {
        return;
    };
    match list {
        Some(list) => metadata.insert("managedFields".to_owned(), list),
        None => metadata.remove("managedFields"),
    };
}

pub(super) fn text<'v>(entry: &'v Value, name: &str) -> &'v str {
    entry.get(name).and_then(Value::as_str).unwrap_or_default()
}
