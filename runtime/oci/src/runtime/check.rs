//! What a configuration must say, and may not: told before anything is made.

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, Process, Spec};

use super::create::is_ordinary_user;
#[cfg(any(test, fuzzing))]
use super::prepare::{group_owner, new_record, refuse_limits};
use crate::error::CreateError;
#[cfg(any(test, fuzzing))]
use crate::id::ContainerId;
#[cfg(any(test, fuzzing))]
use crate::idmap::Wanted;
use crate::label;
use crate::mount::Options;
use crate::namespace::{Kind, NamespaceSet};
#[cfg(any(test, fuzzing))]
use crate::netdev;
use crate::rdt;
#[cfg(any(test, fuzzing))]
use crate::rootfs;
#[cfg(any(test, fuzzing))]
use crate::state::Record;

/// What must be there, and what cannot be done, before anything is made.
pub(super) fn check(spec: &Spec) -> Result<(), CreateError> {
    if !spec.version().starts_with("1.") {
        return Err(CreateError::invalid(format!(
            "ociVersion {:?} is not 1.x",
            spec.version()
        )));
    }
    // Only start needs a process (config.md, "Process").
    if let Some(process) = spec.process() {
        check_process(process)?;
    }
    let linux = spec
        .linux()
        .as_ref()
        .ok_or_else(|| CreateError::invalid("linux is missing"))?;
    if let Some(rdt) = linux.intel_rdt() {
        rdt::check(rdt).map_err(CreateError::Rdt)?;
    }
    for mount in spec.mounts().iter().flatten() {
        let options = Options::parse(mount.options().as_deref().unwrap_or_default())
            .map_err(|error| CreateError::invalid(error.to_string()))?;
        if let Some((key, _)) = options.data.iter().find(|(key, _)| {
            let key = key.to_bytes();
            key == b"idmap" || key == b"ridmap"
        }) {
            // crun's own notation: as a file system's option it would be lost on a bind mount.
            return Err(CreateError::invalid(format!(
                "mount option {}= (use uidMappings and gidMappings)",
                key.to_string_lossy()
            )));
        }
        if mount.destination().as_os_str().is_empty() {
            return Err(CreateError::invalid("a mount without destination"));
        }
    }
    Ok(())
}

pub(crate) fn check_process(process: &Process) -> Result<(), CreateError> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(CreateError::invalid("process.args is empty"));
    }
    if !process.cwd().is_absolute() {
        return Err(CreateError::invalid(format!(
            "process.cwd {:?} is not absolute",
            process.cwd()
        )));
    }
    if let Some(why) = label::without_apparmor(process) {
        return Err(CreateError::invalid(why));
    }
    let mut seen = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        if seen.contains(&limit.typ()) {
            return Err(CreateError::invalid(format!(
                "process.rlimits holds {} twice",
                limit.typ()
            )));
        }
        seen.push(limit.typ());
        if limit.soft() > limit.hard() {
            return Err(CreateError::invalid(format!(
                "process.rlimits: {} soft above hard",
                limit.typ()
            )));
        }
    }
    Ok(())
}

pub(super) fn check_namespaces(spec: &Spec, namespaces: &NamespaceSet) -> Result<(), CreateError> {
    if is_ordinary_user() && !namespaces.contains(Kind::User) {
        return Err(CreateError::invalid(
            "an ordinary user's container needs a user namespace",
        ));
    }
    let invalid = |what: &str| Err(CreateError::invalid(what));
    let named = |name: &Option<String>| name.as_ref().is_some_and(|name| !name.is_empty());
    if (named(spec.hostname()) || named(spec.domainname())) && !namespaces.contains(Kind::Uts) {
        return invalid("hostname or domainname without a UTS namespace");
    }
    let Some(linux) = spec.linux() else {
        return Ok(());
    };
    let maps =
        |list: &Option<Vec<LinuxIdMapping>>| list.as_ref().is_some_and(|list| !list.is_empty());
    if namespaces.is_new(Kind::User) && !(maps(linux.uid_mappings()) && maps(linux.gid_mappings()))
    {
        return invalid("a new user namespace without uidMappings and gidMappings");
    }
    if linux
        .time_offsets()
        .as_ref()
        .is_some_and(|offsets| !offsets.is_empty())
        && !namespaces.is_new(Kind::Time)
    {
        return invalid("timeOffsets without a new time namespace");
    }
    for name in linux.sysctl().iter().flat_map(|all| all.keys()) {
        let path = name.replace('/', ".");
        let needed = match path.as_str() {
            name if name.starts_with("net.") => Kind::Network,
            name if name.starts_with("fs.mqueue.") => Kind::Ipc,
            name if name.starts_with("kernel.msg")
                || name.starts_with("kernel.shm")
                || name == "kernel.sem" =>
            {
                Kind::Ipc
            }
            "kernel.hostname" | "kernel.domainname" => Kind::Uts,
            _ => {
                return Err(CreateError::invalid(format!(
                    "sysctl {name} belongs to no namespace"
                )));
            }
        };
        if !namespaces.contains(needed) {
            return Err(CreateError::invalid(format!(
                "sysctl {name} without a {needed:?} namespace"
            )));
        }
    }
    Ok(())
}

pub(super) fn find_rootfs(spec: &Spec, bundle: &Path) -> Result<PathBuf, CreateError> {
    let root = spec
        .root()
        .as_ref()
        .ok_or_else(|| CreateError::invalid("root is missing"))?;
    let path = bundle.join(root.path());
    let found = fs::canonicalize(&path).map_err(|source| CreateError::StateFile {
        what: "find the rootfs",
        path: path.clone(),
        source,
    })?;
    if !found.is_dir() || found == Path::new("/") {
        return Err(CreateError::invalid(format!(
            "root.path {} is no directory of its own",
            found.display()
        )));
    }
    Ok(found)
}

/// All that is decided from a configuration before anything is made, for the fuzzer: what comes of it is what would be
/// written to `state.json`.
#[cfg(any(test, fuzzing))]
pub(crate) fn decide(id: &ContainerId, spec: &Spec) -> Result<Record, CreateError> {
    check(spec)?;
    let linux = spec.linux().as_ref().expect("checked");
    // What is joined is opened, and nothing of this machine shall be.
    let mut list = linux.namespaces().clone().unwrap_or_default();
    for namespace in &mut list {
        namespace.set_path(None);
    }
    let namespaces = NamespaceSet::open(&list).map_err(CreateError::Namespace)?;
    check_namespaces(spec, &namespaces)?;
    netdev::check(spec, &namespaces)?;
    let bundle = Path::new("/bundle");
    for mount in spec.mounts().iter().flatten() {
        let options = Options::parse(mount.options().as_deref().unwrap_or_default())
            .map_err(|error| CreateError::invalid(error.to_string()))?;
        Wanted::of(mount, &options, linux, &namespaces)?;
        if options.is_bind(mount.typ().as_deref()) {
            rootfs::bind_source(mount, bundle)
                .map_err(|failure| CreateError::from_failure(failure, ""))?;
        }
    }
    if let Some(resources) = linux.resources() {
        // Whatever it says, it has to be able to say it.
        let _refused = refuse_limits(resources);
    }
    let _owner = group_owner(spec, &namespaces);
    Ok(new_record(
        id,
        spec,
        bundle,
        &bundle.join("rootfs"),
        &namespaces,
    ))
}
