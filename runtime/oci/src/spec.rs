//! Reading configurations.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capability, Process, Spec};
use serde_json::Value;

/// A configuration cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Its file.
    #[error("read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Its text.
    #[error("parse {path}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
}

/// A configuration, and what was left out of it.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The configuration.
    pub value: T,
    /// What the log should tell: capabilities that nobody knows.
    pub warnings: Vec<String>,
}

/// Reads a bundle's `config.json`.
///
/// # Errors
///
/// See [`SpecError`].
pub fn load(path: &Path) -> Result<Loaded<Spec>, SpecError> {
    read(path, |value| value.get_mut("process"))
}

/// Reads a process alone, as `exec --process` takes it.
///
/// # Errors
///
/// See [`SpecError`].
pub fn load_process(path: &Path) -> Result<Loaded<Process>, SpecError> {
    read(path, |value| Some(value))
}

fn read<T: serde::de::DeserializeOwned>(
    path: &Path,
    process: fn(&mut Value) -> Option<&mut Value>,
) -> Result<Loaded<T>, SpecError> {
    let bytes = fs::read(path).map_err(|source| SpecError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(&bytes, process).map_err(|source| SpecError::Parse {
        path: path.to_owned(),
        source,
    })
}

/// Flags of `process.scheduler` as the specification names them, and as the types do.
const SCHEDULER_FLAGS: [(&str, &str); 2] = [
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

/// Who runs a process that names nobody, or only half of somebody: root, as callers of runc know it. The types want both.
fn name_user(process: &mut Value) -> bool {
    let Value::Object(process) = process else {
        return false;
    };
    let user = process
        .entry("user")
        .or_insert_with(|| Value::Object(Default::default()));
    let Value::Object(user) = user else {
        return false;
    };
    let before = user.len();
    for id in ["uid", "gid"] {
        user.entry(id).or_insert_with(|| 0.into());
    }
    user.len() > before
}

/// Renames flags that the types spell otherwise; whether there were any.
fn respell(process: &mut Value) -> bool {
    let flags = process
        .pointer_mut("/scheduler/flags")
        .and_then(Value::as_array_mut);
    let mut found = false;
    for flag in flags.into_iter().flatten() {
        if let Some((_, ours)) = SCHEDULER_FLAGS.iter().find(|(theirs, _)| flag == theirs) {
            *flag = (*ours).into();
            found = true;
        }
    }
    found
}

/// Straight to the types; only if that fails, through a value from which unknown capabilities are taken: the specification
/// wants a warning for those (config.md, "capabilities").
pub(crate) fn parse<T: serde::de::DeserializeOwned>(
    bytes: &[u8],
    process: fn(&mut Value) -> Option<&mut Value>,
) -> Result<Loaded<T>, serde_json::Error> {
    let first = match serde_json::from_slice(bytes) {
        Ok(value) => {
            return Ok(Loaded {
                value,
                warnings: Vec::new(),
            });
        }
        Err(error) => error,
    };
    let mut value: Value = serde_json::from_slice(bytes)?;
    let respelt = process(&mut value).is_some_and(respell);
    let named = process(&mut value).is_some_and(name_user);
    let mut unknown = Vec::new();
    if let Some(Value::Object(sets)) =
        process(&mut value).and_then(|process| process.get_mut("capabilities"))
    {
        for set in sets.values_mut().filter_map(Value::as_array_mut) {
            set.retain(|name| {
                let known = serde_json::from_value::<Capability>(name.clone()).is_ok();
                if let (false, Some(name)) = (known, name.as_str()) {
                    unknown.push(name.to_owned());
                }
                known
            });
        }
    }
    if unknown.is_empty() && !respelt && !named {
        return Err(first);
    }
    unknown.sort();
    unknown.dedup();
    let warning = || format!("ignoring unknown capabilities: {}", unknown.join(", "));
    let warnings = (!unknown.is_empty()).then(warning).into_iter().collect();
    Ok(Loaded {
        value: retype(&value)?,
        warnings,
    })
}

/// One type as another, through its JSON text. The types can be read from a `Value` and written as one too, but that would be
/// the reader and the writer of all of them a second time in the program.
///
/// # Errors
///
/// If the text of the one is none of the other.
pub fn retype<T: serde::de::DeserializeOwned>(
    value: &impl serde::Serialize,
) -> Result<T, serde_json::Error> {
    serde_json::from_slice(&serde_json::to_vec(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_capabilities_are_left_out_with_a_warning_and_other_mistakes_are_not() {
        let text = r#"{"user":{"uid":0,"gid":0},"cwd":"/","capabilities":{"bounding":["CAP_KILL","CAP_TEST"]}}"#;
        let loaded: Loaded<Process> = parse(text.as_bytes(), |value| Some(value)).unwrap();
        assert_eq!(loaded.warnings, ["ignoring unknown capabilities: CAP_TEST"]);
        assert_eq!(
            loaded
                .value
                .capabilities()
                .as_ref()
                .unwrap()
                .bounding()
                .as_ref()
                .unwrap()
                .len(),
            1
        );
        assert!(
            parse::<Process>(br#"{"user":{"uid":"x","gid":0},"cwd":"/"}"#, |value| Some(
                value
            ))
            .is_err()
        );
    }
}
