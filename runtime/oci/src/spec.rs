//! Reading configurations.
//!
//! Whoever writes them knows how runc reads them, with Go's `encoding/json`: what is null is absent, and so is an empty string
//! where a field may be absent. Here as well, in one place, so that nothing else has to ask for both.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capability, Linux, LinuxResources, Mount, Process, Spec};
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
    let mut loaded = read(path, |value| value.get_mut("process"))?;
    leave_out_empty(&mut loaded.value);
    Ok(loaded)
}

/// Reads a process alone, as `exec --process` takes it.
///
/// # Errors
///
/// See [`SpecError`].
pub fn load_process(path: &Path) -> Result<Loaded<Process>, SpecError> {
    let mut loaded: Loaded<Process> = read(path, |value| Some(value))?;
    leave_out_empty_labels(&mut loaded.value);
    Ok(loaded)
}

/// Reads the resources that `update` takes.
///
/// # Errors
///
/// If the text is none of theirs.
pub fn parse_resources(text: &[u8]) -> Result<LinuxResources, serde_json::Error> {
    Ok(parse(text, |_| None)?.value)
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
fn name_user(process: &mut Value) {
    let Value::Object(process) = process else {
        return;
    };
    let user = process
        .entry("user")
        .or_insert_with(|| Value::Object(Default::default()));
    if let Value::Object(user) = user {
        for id in ["uid", "gid"] {
            user.entry(id).or_insert_with(|| 0.into());
        }
    }
}

/// Renames flags that the types spell otherwise.
fn respell(process: &mut Value) {
    let flags = process
        .pointer_mut("/scheduler/flags")
        .and_then(Value::as_array_mut);
    for flag in flags.into_iter().flatten() {
        if let Some((_, ours)) = SCHEDULER_FLAGS.iter().find(|(theirs, _)| flag == theirs) {
            *flag = (*ours).into();
        }
    }
}

/// Straight to the types; only if that fails, through a value that is changed to what they can read: what is null goes, and so
/// do unknown capabilities, for which the specification wants a warning (config.md, "capabilities").
pub(crate) fn parse<T: serde::de::DeserializeOwned>(
    bytes: &[u8],
    process: fn(&mut Value) -> Option<&mut Value>,
) -> Result<Loaded<T>, serde_json::Error> {
    if let Ok(value) = serde_json::from_slice(bytes) {
        return Ok(Loaded {
            value,
            warnings: Vec::new(),
        });
    }
    let before: Value = serde_json::from_slice(bytes)?;
    let mut value = before.clone();
    leave_out_nulls(&mut value);
    fill_in_zeroes(&mut value);
    let mut unknown = Vec::new();
    if let Some(process) = process(&mut value) {
        respell(process);
        name_user(process);
        unknown = leave_out_unknown_capabilities(process);
    }
    let value = if value == before {
        // The first error again, which tells the line of what is wrong.
        serde_json::from_slice(bytes)?
    } else {
        retype(&value)?
    };
    let warning = || format!("ignoring unknown capabilities: {}", unknown.join(", "));
    let warnings = (!unknown.is_empty()).then(warning).into_iter().collect();
    Ok(Loaded { value, warnings })
}

/// Their names, sorted.
fn leave_out_unknown_capabilities(process: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    let sets = process
        .get_mut("capabilities")
        .and_then(Value::as_object_mut);
    for set in sets.into_iter().flat_map(|sets| sets.values_mut()) {
        let Some(set) = set.as_array_mut() else {
            continue;
        };
        set.retain(|name| {
            let known = serde_json::from_value::<Capability>(name.clone()).is_ok();
            if let (false, Some(name)) = (known, name.as_str()) {
                unknown.push(name.to_owned());
            }
            known
        });
    }
    unknown.sort();
    unknown.dedup();
    unknown
}

/// Takes out every field that is null. The types do so for most, but not where they know a field by a number.
fn leave_out_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(leave_out_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(leave_out_nulls),
        _ => {}
    }
}

/// Fields that have a zero value where they are absent, and for the types must be there.
fn fill_in_zeroes(value: &mut Value) {
    let rules = value
        .pointer_mut("/linux/seccomp/syscalls")
        .and_then(Value::as_array_mut);
    for rule in rules.into_iter().flatten().filter_map(Value::as_object_mut) {
        rule.entry("names")
            .or_insert_with(|| Vec::<Value>::new().into());
        let conditions = rule.get_mut("args").and_then(Value::as_array_mut);
        for condition in conditions
            .into_iter()
            .flatten()
            .filter_map(Value::as_object_mut)
        {
            for number in ["index", "value"] {
                condition.entry(number).or_insert_with(|| 0.into());
            }
        }
    }
    // Those of a configuration, and those of `update`.
    for list in ["/linux/resources/devices", "/devices"] {
        let rules = value.pointer_mut(list).and_then(Value::as_array_mut);
        for rule in rules.into_iter().flatten().filter_map(Value::as_object_mut) {
            rule.retain(|name, field| name != "type" || *field != "");
        }
    }
}

/// Takes out the empty strings that stand for nothing.
fn leave_out_empty(spec: &mut Spec) {
    let nothing = |name: &mut String| name.is_empty();
    spec.hostname_mut().take_if(nothing);
    spec.domainname_mut().take_if(nothing);
    if let Some(process) = spec.process_mut() {
        leave_out_empty_labels(process);
    }
    spec.mounts_mut()
        .iter_mut()
        .flatten()
        .for_each(leave_out_empty_source);
    if let Some(linux) = spec.linux_mut() {
        leave_out_empty_paths(linux);
    }
}

fn leave_out_empty_labels(process: &mut Process) {
    let empty = |label: &Option<String>| label.as_deref() == Some("");
    if empty(process.apparmor_profile()) {
        process.set_apparmor_profile(None);
    }
    if empty(process.selinux_label()) {
        process.set_selinux_label(None);
    }
}

fn leave_out_empty_source(mount: &mut Mount) {
    if mount.typ().as_deref() == Some("") {
        mount.set_typ(None);
    }
    if mount.source().as_deref() == Some(Path::new("")) {
        mount.set_source(None);
    }
}

fn leave_out_empty_paths(linux: &mut Linux) {
    let nothing = |name: &mut String| name.is_empty();
    linux
        .cgroups_path_mut()
        .take_if(|path| path.as_os_str().is_empty());
    linux.mount_label_mut().take_if(nothing);
    linux.rootfs_propagation_mut().take_if(nothing);
    if let Some(list) = linux.masked_paths_mut() {
        list.retain(|path| !path.is_empty());
    }
    if let Some(list) = linux.readonly_paths_mut() {
        list.retain(|path| !path.is_empty());
    }
    if let Some(profile) = linux.seccomp_mut() {
        if profile
            .listener_path()
            .as_ref()
            .is_some_and(|path| path.as_os_str().is_empty())
        {
            profile.set_listener_path(None);
        }
        if profile.listener_metadata().as_deref() == Some("") {
            profile.set_listener_metadata(None);
        }
    }
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

    #[test]
    fn what_is_null_is_absent_and_other_mistakes_are_told_with_their_line() {
        let parse = |text: &str| parse::<Spec>(text.as_bytes(), |value| value.get_mut("process"));
        let spec = parse(
            r#"{"process":{"cwd":"/","user":{"uid":null}},"linux":{"resources":{"pids":{"limit":null}}}}"#,
        );
        let spec = spec.unwrap().value;
        assert_eq!(spec.process().as_ref().unwrap().user().uid(), 0);
        let pids = |linux: &Linux| linux.resources().as_ref()?.pids().map(|pids| pids.limit());
        assert_eq!(pids(spec.linux().as_ref().unwrap()), Some(0));
        let error = parse("{\n\"root\":\n{\"path\": 1}}").unwrap_err();
        assert_eq!(error.line(), 3, "{error}");
    }
}
