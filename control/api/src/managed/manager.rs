//! Those who own fields: clients, and what tells their entries apart.
//!
//! Source: apimachinery `apis/meta/v1/validation`, `util/managedfields/internal/buildmanagerinfo.go`, apiserver
//! `endpoints/handlers` (`managerOrUserAgent`).

use crate::status::FieldError;

const MAX_NAME: usize = 128;

/// A client, as it names itself, and the version of the object that it writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manager {
    /// Its name, or `unknown`.
    pub name: String,
    /// `apps/v1`
    pub api_version: String,
}

impl Manager {
    /// The client of a request: as the parameter `fieldManager` names it, or else by the program in its user agent.
    pub fn new(field_manager: &str, user_agent: &str, api_version: &str) -> Self {
        Self {
            name: client_name(field_manager, user_agent),
            api_version: api_version.to_owned(),
        }
    }
}

/// The client of a request: as the parameter `fieldManager` names it, or else by the program in its user agent.
pub fn client_name(field_manager: &str, user_agent: &str) -> String {
    let name = match field_manager {
        "" => program(user_agent),
        name => name.to_owned(),
    };
    match name.is_empty() {
        true => "unknown".to_owned(),
        false => name,
    }
}

/// The user agent up to its first slash, without what cannot be printed, and cut at the length of a manager's name.
fn program(user_agent: &str) -> String {
    let mut name = String::new();
    let first = user_agent.split('/').next().unwrap_or_default();
    for c in first.chars().filter(|c| is_printable(*c)) {
        if name.len() + c.len_utf8() > MAX_NAME {
            break;
        }
        name.push(c);
    }
    name
}

/// What is wrong with the parameter `fieldManager`; an apply requires it.
pub fn validate_name(name: &str, is_apply: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if name.is_empty() && is_apply {
        errors.push(FieldError::required(
            "fieldManager",
            "is required for apply patch",
        ));
    }
    if name.len() > MAX_NAME {
        errors.push(FieldError::too_long("fieldManager", MAX_NAME, "bytes"));
    }
    for (position, c) in name.char_indices().filter(|(_, c)| !is_printable(*c)) {
        let detail = format!(
            "invalid character U+{:04X} (at position {position})",
            u32::from(c)
        );
        errors.push(FieldError::invalid("fieldManager", &name.into(), &detail));
    }
    errors
}

/// Whether Go prints the character as it is: letters, marks, numbers, punctuation, symbols and the ASCII space.
fn is_printable(c: char) -> bool {
    // Escaping leaves exactly these as they are, but for quotes and backslashes; a letter goes before, because a mark is
    // only escaped where it has nothing to combine with.
    let text: String = ['a', c].into_iter().collect();
    matches!(c, '"' | '\'' | '\\') || text.escape_debug().count() == 2
}

/// How fields were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// By server-side apply.
    Apply,
    /// By any other write.
    Update,
}

impl Operation {
    /// The word for it in an entry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// What tells entries apart. An applier has one entry, whatever version it applies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// The client's name.
    pub manager: String,
    /// How it writes.
    pub operation: Operation,
    /// The version that it writes; empty for an applier.
    pub api_version: String,
    /// The subresource through which it writes, or empty.
    pub subresource: String,
}

impl Identity {
    /// The entry of a client for one way of writing.
    pub fn new(manager: &Manager, operation: Operation, subresource: Option<&str>) -> Self {
        let api_version = match operation {
            Operation::Apply => String::new(),
            Operation::Update => manager.api_version.clone(),
        };
        let subresource = subresource.unwrap_or_default().to_owned();
        Self {
            manager: manager.name.clone(),
            operation,
            api_version,
            subresource,
        }
    }
}
