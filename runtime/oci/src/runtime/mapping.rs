//! The mappings of a new user namespace, as user_namespaces(7) wants them written: each file once, with all its lines.

use std::fs;
use std::io;
use std::process::{Command, Stdio};

use nix::unistd::{Pid, getegid, geteuid};
use oci_spec::runtime::{LinuxIdMapping, Spec};

use super::create::is_ordinary_user;
use crate::error::CreateError;

/// Writes both. An ordinary user may map himself alone, and for that gives up setgroups; for more there are two helpers with
/// rights of their own (newuidmap(1)), which allow what /etc/subuid and /etc/subgid say.
pub(super) fn write(spec: &Spec, pid: Pid) -> Result<(), CreateError> {
    let Some(linux) = spec.linux() else {
        return Ok(());
    };
    let users = linux.uid_mappings().as_deref().unwrap_or_default();
    let groups = linux.gid_mappings().as_deref().unwrap_or_default();
    let put = |file: &str, text: &str| {
        let path = format!("/proc/{pid}/{file}");
        fs::write(&path, text).map_err(CreateError::system(format!("write {path}")))
    };
    if !is_ordinary_user() {
        put("uid_map", &lines(users))?;
        return put("gid_map", &lines(groups));
    }
    if is_oneself(users, geteuid().as_raw()) {
        put("uid_map", &lines(users))?;
    } else {
        help("newuidmap", pid, users)?;
    }
    if is_oneself(groups, getegid().as_raw()) {
        put("setgroups", "deny")?;
        put("gid_map", &lines(groups))
    } else {
        help("newgidmap", pid, groups)
    }
}

fn is_oneself(list: &[LinuxIdMapping], own: u32) -> bool {
    matches!(list, [only] if only.host_id() == own && only.size() == 1)
}

fn lines(list: &[LinuxIdMapping]) -> String {
    let line =
        |map: &LinuxIdMapping| format!("{} {} {}\n", map.container_id(), map.host_id(), map.size());
    list.iter().map(line).collect()
}

fn help(program: &str, pid: Pid, list: &[LinuxIdMapping]) -> Result<(), CreateError> {
    let numbers = list
        .iter()
        .flat_map(|map| [map.container_id(), map.host_id(), map.size()]);
    let output = Command::new(program)
        .arg(pid.to_string())
        .args(numbers.map(|number| number.to_string()))
        .stdin(Stdio::null())
        .output()
        .map_err(CreateError::system(format!(
            "run {program} (of the package uidmap), which an ordinary user needs for such mappings"
        )))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(CreateError::system(program.to_owned())(io::Error::other(
        message,
    )))
}
