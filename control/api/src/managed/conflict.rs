//! Conflicts: fields that an apply would change and that others own.
//!
//! Source: apimachinery `util/managedfields/internal/conflict.go`.

use std::collections::BTreeMap;
use std::fmt;

use super::manager::{Identity, Operation};
use super::path::PathElement;
use super::set::print_path;

/// One field that somebody else owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The owner's entry.
    pub owner: Identity,
    /// The field.
    pub path: Vec<PathElement>,
}

/// All conflicts of an apply, ordered by their owners. The reason of the answer is `Conflict`, its code 409.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflicts(pub Vec<Conflict>);

/// One entry of `details.causes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// `FieldManagerConflict`
    pub reason: &'static str,
    /// `conflict with "kubectl" using apps/v1`
    pub message: String,
    /// `.spec.replicas`
    pub field: String,
}

impl Conflict {
    /// The owner as messages name it: `"kubectl-edit" using apps/v1`; for an applier just `"flux"`.
    pub fn owner_text(&self) -> String {
        let Identity {
            manager,
            operation,
            api_version,
            subresource,
        } = &self.owner;
        let mut text = format!("{manager:?}");
        if !subresource.is_empty() {
            text.push_str(&format!(" with subresource {subresource:?}"));
        }
        if *operation == Operation::Update {
            text.push_str(&format!(" using {api_version}"));
        }
        text
    }
}

impl Conflicts {
    /// The causes that the answer lists.
    pub fn causes(&self) -> Vec<Cause> {
        let cause = |conflict: &Conflict| Cause {
            reason: "FieldManagerConflict",
            message: format!("conflict with {}", conflict.owner_text()),
            field: print_path(&conflict.path),
        };
        self.0.iter().map(cause).collect()
    }
}

/// The message of the answer.
impl fmt::Display for Conflicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [one] = self.0.as_slice() {
            let path = print_path(&one.path);
            return write!(
                f,
                "Apply failed with 1 conflict: conflict with {}: {path}",
                one.owner_text()
            );
        }
        let mut by_owner: BTreeMap<&Identity, Vec<&Conflict>> = BTreeMap::new();
        for conflict in &self.0 {
            by_owner.entry(&conflict.owner).or_default().push(conflict);
        }
        let mut lines = Vec::with_capacity(self.0.len() + by_owner.len());
        for conflicts in by_owner.values() {
            lines.push(format!("conflicts with {}:", conflicts[0].owner_text()));
            lines.extend(
                conflicts
                    .iter()
                    .map(|conflict| format!("- {}", print_path(&conflict.path))),
            );
        }
        write!(
            f,
            "Apply failed with {} conflicts: {}",
            self.0.len(),
            lines.join("\n")
        )
    }
}

impl std::error::Error for Conflicts {}
