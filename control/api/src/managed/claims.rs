//! What a write means to others: the fields that it takes from them.
//!
//! Source: structured-merge-diff, `merge/update.go`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::compare::{Changes, compare};
use super::manager::Identity;
use super::managers::Managers;
use super::set::FieldSet;
use super::typed::TypedError;
use super::{Write, check};
use crate::schema::Schema;

/// What a write means to the entries of others.
#[derive(Default)]
pub(super) struct Claims {
    /// Entries of versions that the server does not serve any more.
    gone: Vec<Identity>,
    /// Fields that the write takes from them.
    pub taken: Vec<(Identity, FieldSet)>,
    /// Fields that are not there any more.
    removed: Vec<(Identity, FieldSet)>,
}

impl Claims {
    /// Looks at all entries but the writer's own, each in its version.
    pub(super) fn of(
        write: &Write<'_>,
        managers: &mut Managers,
        own: Option<&Identity>,
        old: Option<&Value>,
        new: &Value,
        changes: &Changes,
    ) -> Result<Self, TypedError> {
        let mut claims = Self::default();
        let mut versions = Versions {
            write,
            old,
            new,
            known: BTreeMap::new(),
        };
        for (identity, entry) in &mut managers.entries {
            let is_current = entry.api_version == write.manager.api_version;
            let (schema, found) = if is_current {
                (write.schema, changes)
            } else {
                match versions.get(&entry.api_version)? {
                    Some((schema, changes)) => (schema.as_ref(), changes),
                    None => {
                        claims.gone.push(identity.clone());
                        continue;
                    }
                }
            };
            if own == Some(identity) {
                continue;
            }
            check::reconcile(schema, &mut entry.set);
            let taken = entry
                .set
                .intersection(&found.added)
                .union(&entry.set.intersection(&found.modified));
            if !taken.is_empty() {
                claims.taken.push((identity.clone(), taken));
            }
            if !found.removed.is_empty() {
                claims
                    .removed
                    .push((identity.clone(), found.removed.clone()));
            }
        }
        Ok(claims)
    }

    /// Takes the fields from their owners, and drops entries that own nothing any more.
    pub(super) fn settle(self, managers: &mut Managers) {
        for identity in &self.gone {
            managers.entries.remove(identity);
        }
        for (identity, fields) in self.taken.iter().chain(&self.removed) {
            if let Some(entry) = managers.entries.get_mut(identity) {
                entry.set = entry.set.difference(fields);
            }
        }
        managers.drop_empty();
    }
}

/// The schema and the changes in one version; none if the server does not serve it.
type Known = Option<(Option<Schema>, Changes)>;

/// The changes in other versions, found when an entry asks for them.
struct Versions<'a> {
    write: &'a Write<'a>,
    old: Option<&'a Value>,
    new: &'a Value,
    known: BTreeMap<String, Known>,
}

impl Versions<'_> {
    fn get(&mut self, version: &str) -> Result<&Known, TypedError> {
        if !self.known.contains_key(version) {
            let found = self.find(version)?;
            self.known.insert(version.to_owned(), found);
        }
        Ok(&self.known[version])
    }

    fn find(&self, version: &str) -> Result<Known, TypedError> {
        let Some(new) = (self.write.convert)(self.new, version) else {
            return Ok(None);
        };
        let old = match self.old {
            None => None,
            Some(old) => match (self.write.convert)(old, version) {
                Some(old) => Some(old.object),
                None => return Ok(None),
            },
        };
        let changes = compare(new.schema.as_ref(), old.as_ref(), &new.object)?;
        Ok(Some((new.schema, changes.without(self.write.reset))))
    }
}
