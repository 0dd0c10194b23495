//! What a container has before its process: state directory, cgroup, record. For create and restore alike.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxResources, Spec};

use super::birth::Newborn;
use super::create::{is_ordinary_user, state_file};
use super::scope::Holder;
use super::{CgroupManager, Runtime};
use crate::cgroup::systemd::{Scope, Systemd, Unit};
use crate::cgroup::{CgroupError, Group, GroupRecord, Layout};
use crate::error::CreateError;
use crate::id::ContainerId;
use crate::namespace::{Kind, NamespaceSet};
use crate::rdt;
use crate::rootfs;
use crate::state::{OCI_VERSION, Record, StateDir, now};

/// What was taken for a container before anything of it is made.
pub(super) struct Reserved {
    pub unfinished: Unfinished,
    pub dir: StateDir,
    pub layout: Layout,
    /// Without its group.
    pub record: Record,
    holder: Option<Holder>,
}

impl Reserved {
    /// Whether systemd makes its group.
    pub fn is_held(&self) -> bool {
        self.holder.is_some()
    }
}

/// What was made for a container around its process.
pub(super) struct Prepared {
    pub unfinished: Unfinished,
    pub dir: StateDir,
    pub group: Group,
    pub record: Record,
    /// Whether it goes without a cgroup.
    pub without_group: bool,
    /// Keeps a scope of systemd's until the process is in it.
    pub holder: Option<Holder>,
}

/// Removes what was made so far, unless the container comes to be.
pub(super) struct Unfinished {
    pub dir: Option<StateDir>,
    pub scope: Option<(&'static dyn Systemd, Scope)>,
    pub group: Option<Group>,
    /// Directories of its class that were not there before, the last one first.
    pub classes: Vec<PathBuf>,
    /// Where a root is attached on the host.
    pub mounted: Option<PathBuf>,
    /// Last to be made, first to go.
    pub process: Option<Newborn>,
}

impl Unfinished {
    /// The container has come to be. Gives the descriptor of its process.
    pub fn keep(mut self) -> OwnedFd {
        let mut newborn = self.process.take().expect("it has a process");
        self.scope = None;
        self.group = None;
        self.classes.clear();
        self.dir = None;
        self.mounted = None;
        newborn.pidfd.take().expect("taken once")
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Already on the way out with an error, which is the one to tell.
        drop(self.process.take());
        if let Some(path) = self.mounted.take() {
            let _kept = rootfs::unmount_from_host(&path);
        }
        if let Some(group) = self.group.take() {
            let _kept = group.kill_all();
            if let Some((systemd, scope)) = self.scope.take() {
                let _kept = systemd.stop(&scope);
            }
            let _kept = group.remove();
        }
        if let Some((systemd, scope)) = self.scope.take() {
            let _kept = systemd.stop(&scope);
        }
        for class in self.classes.drain(..) {
            let _kept = rdt::remove(&class);
        }
        if let Some(dir) = self.dir.take() {
            let _kept = dir.remove();
        }
    }
}

impl Runtime {
    /// Takes the id, and with systemd the scope.
    pub(super) fn reserve(
        &self,
        id: &ContainerId,
        bundle: &Path,
        rootfs: &Path,
        spec: &Spec,
        namespaces: &NamespaceSet,
    ) -> Result<Reserved, CreateError> {
        let mut unfinished = Unfinished {
            dir: None,
            scope: None,
            group: None,
            classes: Vec::new(),
            mounted: None,
            process: None,
        };
        let dir = self.dir(id);
        match dir.create(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(CreateError::Exists { id: id.to_string() });
            }
            done => done.map_err(state_file("create", dir.path()))?,
        }
        unfinished.dir = Some(dir.clone());

        let layout = Layout::detect().map_err(CreateError::Cgroup)?;
        let holder = match self.options.cgroup_manager {
            CgroupManager::Systemd => Some(self.start_scope(id, spec, &layout, &mut unfinished)?),
            CgroupManager::Cgroupfs | CgroupManager::Disabled => None,
        };
        let mut record = new_record(id, spec, bundle, rootfs, namespaces);
        record.scope = unfinished.scope.as_ref().map(|(_, scope)| scope.clone());
        Ok(Reserved {
            unfinished,
            dir,
            layout,
            record,
            holder,
        })
    }

    /// Makes the group with its limits, and writes down what there is.
    pub(super) fn prepare(
        &self,
        reserved: Reserved,
        id: &ContainerId,
        spec: &Spec,
        namespaces: &NamespaceSet,
    ) -> Result<Prepared, CreateError> {
        let Reserved {
            mut unfinished,
            dir,
            layout,
            mut record,
            holder,
        } = reserved;
        let linux = spec
            .linux()
            .as_ref()
            .ok_or_else(|| CreateError::invalid("linux is missing"))?;
        let resources = linux.resources().as_ref();
        let group_path = match (&holder, linux.cgroups_path()) {
            (Some(holder), _) => holder.group.clone(),
            (None, Some(path)) => path.clone(),
            (None, None) => PathBuf::from(id.as_str()),
        };
        let more = crate::cgroup::seen(spec);
        // Before there is a group: whoever finds this after a crash knows which one to remove. A path that cannot be is told
        // below.
        let disabled = self.options.cgroup_manager == CgroupManager::Disabled;
        if !disabled {
            let announced = Group::announce(&layout, &group_path, resources, more);
            record.cgroup = announced.unwrap_or_default();
        }
        if let Some(wanted) = linux.intel_rdt() {
            let class = rdt::Resctrl::find().and_then(|resctrl| resctrl.plan(id.as_str(), wanted));
            record.rdt = Some(class.map_err(CreateError::Rdt)?);
        }
        dir.write_record(&record)
            .map_err(state_file("write state.json in", dir.path()))?;
        let made = match disabled {
            true => None,
            false => match Group::create_with(&layout, &group_path, resources, more) {
                Err(error)
                    if error.is_denied() && holder.is_none() && self.may_go_without_group() =>
                {
                    None
                }
                made => Some(made.map_err(CreateError::Cgroup)?),
            },
        };
        let without_group = made.is_none();
        let mut group = made.unwrap_or_else(|| Group::from_record(GroupRecord::default()));
        if holder.is_none() {
            // Before it is ours to clean up: what lives in there must not be killed.
            group.check_unused().map_err(|error| {
                // What was missing of it goes again. The failure to tell is the first one.
                let _left = group.remove();
                CreateError::Cgroup(error)
            })?;
        }
        unfinished.group = Some(group.clone());
        if let Some(resources) = resources {
            if without_group {
                refuse_limits(resources)?;
            } else {
                let mut limits = resources.clone();
                if is_ordinary_user() {
                    // It may load no device program into a group that was delegated to it, and needs none: nodes that it
                    // cannot make or open stay out of its reach.
                    limits.set_devices(None);
                }
                let mut applied = group.apply(&layout, &limits);
                let denied = applied.as_ref().is_err_and(CgroupError::is_denied);
                if denied && limits.devices().is_some() && in_user_namespace() {
                    // Who is root in a user namespace only is an ordinary user in this.
                    limits.set_devices(None);
                    applied = group.apply(&layout, &limits);
                }
                let applied = applied.map_err(CreateError::Cgroup);
                unfinished.group = Some(group.clone());
                applied?;
            }
        }
        if let Some(owner) = group_owner(spec, namespaces) {
            group.give_to(owner).map_err(CreateError::Cgroup)?;
        }

        if record.cgroup != *group.record() {
            record.cgroup = group.record().clone();
            dir.write_record(&record)
                .map_err(state_file("write state.json in", dir.path()))?;
        }
        if let (Some(wanted), Some(class)) = (linux.intel_rdt(), &record.rdt) {
            let made = class.make(wanted, &mut unfinished.classes);
            made.map_err(CreateError::Rdt)?;
        }
        Ok(Prepared {
            unfinished,
            dir,
            group,
            record,
            // Nobody is told what he has asked for.
            without_group: without_group && !disabled,
            holder,
        })
    }

    /// Whether a group that may not be made is no failure.
    fn may_go_without_group(&self) -> bool {
        let rootless = self.options.rootless;
        rootless.unwrap_or_else(|| is_ordinary_user() || in_user_namespace())
    }

    /// Has systemd make the container's scope.
    fn start_scope(
        &self,
        id: &ContainerId,
        spec: &Spec,
        layout: &Layout,
        unfinished: &mut Unfinished,
    ) -> Result<Holder, CreateError> {
        let linux = spec.linux().as_ref();
        let path = linux.and_then(|linux| linux.cgroups_path().as_ref());
        let path = path.map_or_else(|| "".into(), |path| path.to_string_lossy());
        let resources = linux.and_then(|linux| linux.resources().clone());
        let annotations = spec.annotations().iter().flatten();
        let annotations = annotations
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let user = is_ordinary_user();
        let unit = Unit::new(
            id.as_str(),
            &path,
            &resources.unwrap_or_default(),
            &annotations,
            layout.is_unified(),
            user,
        )
        .map_err(CreateError::Systemd)?;
        let systemd = self.systemd().map_err(CreateError::Systemd)?;
        let holder = Holder::start(systemd, &unit).map_err(CreateError::Systemd)?;
        unfinished.scope = Some((systemd, unit.scope));
        Ok(holder)
    }
}

/// Whether this process lives in a user namespace, as Podman's does for an ordinary user: root in there has no rights over
/// the host's groups. The first namespace maps all ids to themselves (user_namespaces(7)).
fn in_user_namespace() -> bool {
    // Without procfs there is no telling, and no user namespace without one has been seen.
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| {
        let numbers: Vec<&str> = map.split_whitespace().collect();
        numbers != ["0", "0", "4294967295"]
    })
}

pub(super) fn new_record(
    id: &ContainerId,
    spec: &Spec,
    bundle: &Path,
    rootfs: &Path,
    namespaces: &NamespaceSet,
) -> Record {
    let has = |list: Option<&Vec<_>>| {
        list.is_some_and(|list: &Vec<oci_spec::runtime::Hook>| !list.is_empty())
    };
    let hooks = spec.hooks().as_ref();
    Record {
        oci_version: OCI_VERSION.to_owned(),
        id: id.to_string(),
        bundle: bundle.to_owned(),
        rootfs: rootfs.to_owned(),
        created: now(),
        annotations: spec
            .annotations()
            .iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        pid: 0,
        start_time: 0,
        cgroup: GroupRecord::default(),
        scope: None,
        rdt: None,
        own_pid_namespace: namespaces.is_new(Kind::Pid),
        mounted_on_host: false,
        no_process: spec.process().is_none(),
        poststart: has(hooks.and_then(|hooks| hooks.poststart().as_ref())),
        poststop: has(hooks.and_then(|hooks| hooks.poststop().as_ref())),
    }
}

/// Without a group there are no limits; device rules are the exception, because a user's container cannot make devices.
pub(super) fn refuse_limits(resources: &LinuxResources) -> Result<(), CreateError> {
    let mut rest = resources.clone();
    rest.set_devices(None);
    let value =
        crate::spec::retype(&rest).map_err(|error| CreateError::invalid(error.to_string()))?;
    if says_something(&value) {
        return Err(CreateError::invalid(
            "linux.resources has limits, and there is to be no cgroup, or this user may make none, that could have them",
        ));
    }
    Ok(())
}

/// Whether anything in it is more than empty.
fn says_something(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::Null => false,
        serde_json::Value::Array(list) => list.iter().any(says_something),
        serde_json::Value::Object(map) => map.values().any(says_something),
        _ => true,
    }
}

/// To whom the container's group is given: the user who is root inside, if the container sees its groups as its own and may
/// write to them (runtime-spec, config-linux.md, "Cgroup ownership").
pub(super) fn group_owner(spec: &Spec, namespaces: &NamespaceSet) -> Option<nix::unistd::Uid> {
    let own = namespaces.is_new(Kind::User) && namespaces.is_new(Kind::Cgroup);
    let writable = spec.mounts().iter().flatten().any(|mount| {
        matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2"))
            && !mount.options().iter().flatten().any(|word| word == "ro")
    });
    let maps = spec.linux().as_ref()?.uid_mappings().as_ref()?;
    let root = maps
        .iter()
        .find(|map| map.container_id() == 0 && map.size() > 0)?;
    (own && writable).then(|| nix::unistd::Uid::from_raw(root.host_id()))
}
