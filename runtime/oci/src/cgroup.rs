//! Control groups on v1, hybrid and v2 hosts.
//!
//! [`Layout`] says what is mounted where, [`Group`] is one group in all hierarchies that count, by its path from the
//! hierarchies' roots. Usable without the rest of the crate: for a pod's group, for QoS classes, for events and numbers.
//! A group that we did not make is never removed.
//!
//! * `layout`: what is mounted where
//! * `plan`: from the configuration's resources to writes, pure, one file per version: `v1`, `v2`
//! * `merge`: old limits and new ones, for update
//! * `devices`: the BPF program which takes the place of v1's device files on v2
//! * `systemd`: groups that systemd makes: what to ask it for
//! * `stats`: reading what was used
//! * `events`: waiting for out-of-memory

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

mod devices;
mod events;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod layout;
mod merge;
mod stats;
pub mod systemd;
mod v1;
mod v2;

pub use events::OomEvents;
pub use layout::Layout;
pub(crate) use layout::mount_point;
pub(crate) use merge::to_write;
pub use merge::{ignored, merge};
pub use stats::{BlkioStats, CpuStats, MemoryStats, PidsStats, Stats};
pub(crate) use v1::seen;

/// Something on a cgroup failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The path of a group is none.
    #[error("invalid cgroup path {path:?}: it may not hold `..`")]
    InvalidPath {
        /// The path.
        path: PathBuf,
    },
    /// What is mounted cannot be told.
    #[error("read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A group cannot be made.
    #[error("create cgroup {path}", path = path.display())]
    Create {
        /// Its directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A value was refused.
    #[error("write {value:?} to {path}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The value.
        value: String,
        /// Why not.
        source: io::Error,
    },
    /// A group cannot be removed.
    #[error("remove cgroup {path}", path = path.display())]
    Remove {
        /// Its directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The host has no such controller, and it was asked for.
    #[error("this host has no cgroup controller {controller:?}, which {wanted_by} needs")]
    NoController {
        /// Its name.
        controller: String,
        /// The field of the configuration.
        wanted_by: String,
    },
    /// The field makes sense on another version only.
    #[error("invalid configuration: {what} is not possible on cgroup {version}")]
    WrongVersion {
        /// The field.
        what: String,
        /// `v1` or `v2`.
        version: &'static str,
    },
    /// The field holds what cannot be.
    #[error("invalid {what}")]
    Invalid {
        /// The field, and its value.
        what: String,
    },
    /// `checkBeforeUpdate` was asked for, and the limit is below what is used.
    #[error("memory limit {limit} is not above the {usage} bytes that are used now")]
    BelowUsage {
        /// The limit, of memory or of memory and swap.
        limit: i64,
        /// `memory.current`.
        usage: i64,
    },
    /// Two sets of limits cannot be made one.
    #[error("merge the new limits with the old ones")]
    Merge {
        /// Why not.
        source: serde_json::Error,
    },
    /// Device rules of v2.
    #[error("load the device rules into the kernel")]
    DeviceProgram {
        /// Why not.
        source: io::Error,
    },
    /// Others live in the group already: it could not be frozen, killed or removed without them. In words of runc's.
    #[error("container's cgroup is not empty: {count} process(es) found in {path}", path = path.display())]
    NotEmpty {
        /// The group.
        path: PathBuf,
        /// How many.
        count: usize,
    },
    /// A process that enters it would never do anything. In words of runc's.
    #[error("container's cgroup unexpectedly frozen: {path}", path = path.display())]
    Frozen {
        /// The group.
        path: PathBuf,
    },
    /// Waiting for the freezer or for processes to end took too long.
    #[error("{what} took too long in {path}", path = path.display())]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// The group.
        path: PathBuf,
    },
}

impl CgroupError {
    /// Whether it is for lack of rights, or because the hierarchy is mounted read-only.
    pub fn is_denied(&self) -> bool {
        let (Self::Read { source, .. } | Self::Create { source, .. } | Self::Write { source, .. }) =
            self
        else {
            return false;
        };
        matches!(
            source.kind(),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
        )
    }
}

/// What to write where, decided before anything is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write1 {
    /// The controller, as v1 names it; on v2 it only says which to enable.
    pub controller: &'static str,
    /// The file's name.
    pub file: String,
    /// What to write.
    pub value: String,
    /// The field of the configuration, for errors.
    pub wanted_by: &'static str,
    /// Whether a missing file or a refusal is no failure (the value is only a default of ours).
    pub optional: bool,
    /// File and value for a kernel that has not this file.
    pub otherwise: Option<(String, String)>,
}

impl Write1 {
    fn new(
        controller: &'static str,
        file: impl Into<String>,
        value: impl ToString,
        wanted_by: &'static str,
    ) -> Self {
        Self {
            controller,
            file: file.into(),
            value: value.to_string(),
            wanted_by,
            optional: false,
            otherwise: None,
        }
    }

    /// What a kernel without the file gets instead.
    fn or(mut self, file: impl Into<String>, value: impl ToString) -> Self {
        self.otherwise = Some((file.into(), value.to_string()));
        self
    }

    /// A first try of a write that comes again: which of two related files is to be written first depends on what is in
    /// them already (quota and burst, quota and period).
    fn first_try(&self) -> Self {
        Self {
            optional: true,
            ..self.clone()
        }
    }
}

/// One group, as it is kept in a container's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Path from the hierarchies' roots.
    pub path: PathBuf,
    /// The group's directory per controller (v1), or under the empty name (v2).
    pub directories: BTreeMap<String, PathBuf>,
    /// Directories that we made, parents before children: the ones to remove.
    pub made: Vec<PathBuf>,
}

/// One group in all hierarchies that count.
#[derive(Clone, Debug)]
pub struct Group {
    record: GroupRecord,
    unified: bool,
}

/// How long to wait for the freezer and for processes to leave a group.
const PATIENCE: Duration = Duration::from_secs(10);

impl Group {
    /// Makes the group `path` (from the roots), and its parents, where they are missing.
    ///
    /// On v1 in the hierarchies that a container always gets, and those which `resources` needs.
    /// On v2 every controller that exists is enabled on the way down.
    ///
    /// # Errors
    ///
    /// See [`CgroupError`]; what was made before is removed again.
    pub fn create(
        layout: &Layout,
        path: &Path,
        resources: Option<&LinuxResources>,
    ) -> Result<Self, CgroupError> {
        Self::create_with(layout, path, resources, &[])
    }

    /// The same, and on v1 in these hierarchies, too, if the host has them.
    pub(crate) fn create_with(
        layout: &Layout,
        path: &Path,
        resources: Option<&LinuxResources>,
        more: &[&'static str],
    ) -> Result<Self, CgroupError> {
        let relative = relative(path)?;
        let mut group = Self {
            record: GroupRecord {
                path: Path::new("/").join(&relative),
                ..GroupRecord::default()
            },
            unified: layout.is_unified(),
        };
        let made = match layout.unified_root() {
            Some(root) if layout.is_unified() => v2::create(&mut group.record, root, &relative),
            _ => v1::create(&mut group.record, layout, &relative, resources, more),
        };
        match made {
            Ok(()) => Ok(group),
            Err(error) => {
                for directory in group.record.made.iter().rev() {
                    // Only clean-up of what is empty and ours: the first error is the one to tell.
                    let _left = fs::remove_dir(directory);
                }
                Err(error)
            }
        }
    }

    /// Whether a container can have it for itself: a group that was there before may hold processes, or be frozen.
    ///
    /// # Errors
    ///
    /// [`CgroupError::NotEmpty`] and [`CgroupError::Frozen`], or if its files cannot be read.
    pub(crate) fn check_unused(&self) -> Result<(), CgroupError> {
        let found = |directory: &&PathBuf| !self.record.made.contains(directory);
        if !self.distinct().any(|directory| found(&directory)) {
            return Ok(());
        }
        let path = || self.record.path.clone();
        let count = self.processes()?.len();
        if count > 0 {
            return Err(CgroupError::NotEmpty {
                path: path(),
                count,
            });
        }
        let Some(directory) = self.directory("freezer") else {
            return Ok(());
        };
        let frozen = if self.unified {
            // Not what the events say, which is about processes.
            read(&directory.join("cgroup.freeze"))?.trim() == "1"
        } else {
            read(&directory.join("freezer.state"))?.trim() != "THAWED"
        };
        if frozen {
            return Err(CgroupError::Frozen { path: path() });
        }
        Ok(())
    }

    /// What [`Group::create_with`] is about to make, for a state file that is written before: whoever finds that after a crash
    /// knows what to remove.
    ///
    /// # Errors
    ///
    /// If `path` is none, or a controller is missing.
    pub(crate) fn announce(
        layout: &Layout,
        path: &Path,
        resources: Option<&LinuxResources>,
        more: &[&'static str],
    ) -> Result<GroupRecord, CgroupError> {
        let relative = relative(path)?;
        let roots: Vec<(&str, &Path)> = if layout.is_unified() {
            layout.hierarchies().collect()
        } else {
            let wanted = v1::controllers(layout, resources, more)?.into_iter();
            wanted
                .filter_map(|controller| Some((controller, layout.v1_root(controller)?)))
                .collect()
        };
        let mut record = GroupRecord {
            path: Path::new("/").join(&relative),
            ..GroupRecord::default()
        };
        for (controller, root) in roots {
            let mut directory = root.to_owned();
            for component in relative.components() {
                directory.push(component);
                if !record.made.contains(&directory) && !directory.exists() {
                    record.made.push(directory.clone());
                }
            }
            record.directories.insert(controller.to_owned(), directory);
        }
        Ok(record)
    }

    /// The group that a state file describes, or any existing group at `path` (then nothing of it is ours to remove).
    pub fn open(layout: &Layout, path: &Path) -> Result<Self, CgroupError> {
        let relative = relative(path)?;
        let mut record = GroupRecord {
            path: Path::new("/").join(&relative),
            ..GroupRecord::default()
        };
        for (controller, root) in layout.hierarchies() {
            let directory = root.join(&relative);
            if directory.is_dir() {
                record.directories.insert(controller.to_owned(), directory);
            }
        }
        Ok(Self {
            record,
            unified: layout.is_unified(),
        })
    }

    /// From a state file.
    pub fn from_record(record: GroupRecord) -> Self {
        let unified = record.directories.contains_key("");
        Self { record, unified }
    }

    /// For a state file.
    pub fn record(&self) -> &GroupRecord {
        &self.record
    }

    /// Path from the hierarchies' roots.
    pub fn path(&self) -> &Path {
        &self.record.path
    }

    /// Whether the host is pure cgroup v2.
    pub fn is_unified(&self) -> bool {
        self.unified
    }

    /// The directory of a controller's group: on v1 its own, on v2 the one of all.
    pub fn directory(&self, controller: &str) -> Option<&Path> {
        self.record
            .directories
            .get(if self.unified { "" } else { controller })
            .map(PathBuf::as_path)
    }

    /// Sets limits. Fields that are not given stay as they are.
    ///
    /// # Errors
    ///
    /// The first value that the kernel refuses, or a controller that this host has not.
    pub fn apply(
        &mut self,
        layout: &Layout,
        resources: &LinuxResources,
    ) -> Result<(), CgroupError> {
        let mut performer = Performer::default();
        if self.unified {
            let directory = self.record.directories.get("").cloned().unwrap_or_default();
            v2::check_usage(&directory, resources)?;
            for write in v2::plan(resources)? {
                performer.perform(&directory, &write)?;
            }
            if let Some(rules) = resources
                .devices()
                .as_deref()
                .filter(|rules| !rules.is_empty())
            {
                devices::install(&directory, rules)?;
            }
            return Ok(());
        }
        let current = |file: &str| {
            let directory = self.record.directories.get("memory")?;
            fs::read_to_string(directory.join(file))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        for write in v1::plan(resources, &current)? {
            if !self.record.directories.contains_key(write.controller) {
                v1::add(&mut self.record, layout, &write)?;
            }
            let directory = &self.record.directories[write.controller];
            performer.perform(directory, &write)?;
        }
        Ok(())
    }

    /// Gives the group, on v2, to the user who is root inside: then the container can divide it further
    /// (runtime-spec, config-linux.md, "Cgroup ownership").
    ///
    /// # Errors
    ///
    /// If an owner cannot be set; a file that this kernel has not is none.
    pub fn give_to(&self, user: nix::unistd::Uid) -> Result<(), CgroupError> {
        let Some(directory) = self.record.directories.get("") else {
            return Ok(());
        };
        // One name a line, since Linux 4.15.
        let listed = fs::read_to_string("/sys/kernel/cgroup/delegate");
        let names = listed.unwrap_or_else(|_| {
            "cgroup.procs\ncgroup.threads\ncgroup.subtree_control\n".to_owned()
        });
        for path in
            std::iter::once(directory.clone()).chain(names.lines().map(|name| directory.join(name)))
        {
            match nix::unistd::chown(&path, Some(user), None) {
                Err(nix::Error::ENOENT) => {}
                done => done.map_err(|errno| CgroupError::Write {
                    path,
                    value: format!("owner {user}"),
                    source: errno.into(),
                })?,
            }
        }
        Ok(())
    }

    /// Moves a process, with all its threads, into the group.
    ///
    /// # Errors
    ///
    /// `ESRCH` if it is gone.
    pub fn add(&self, pid: Pid) -> Result<(), CgroupError> {
        for directory in self.distinct() {
            write(&directory.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    /// Files through which a process enters by itself: it writes `0` to each.
    ///
    /// On v1 these are `tasks`, because moving only oneself takes no lock of the whole machine there
    /// (kernel/cgroup/cgroup.c, cgroup_procs_write_start), which `cgroup.procs` does and which costs milliseconds.
    /// On v2 the process is made inside, or, for exec, writes to `cgroup.procs`.
    ///
    /// # Errors
    ///
    /// If one cannot be opened.
    pub fn entrances(&self) -> Result<Vec<OwnedFd>, CgroupError> {
        let name = if self.unified {
            "cgroup.procs"
        } else {
            "tasks"
        };
        self.distinct()
            .map(|directory| {
                let path = directory.join(name);
                let file = fs::OpenOptions::new().write(true).open(&path);
                file.map(OwnedFd::from)
                    .map_err(|source| CgroupError::Read { path, source })
            })
            .collect()
    }

    /// The v2 directory, for `CLONE_INTO_CGROUP`.
    ///
    /// # Errors
    ///
    /// If it cannot be opened.
    pub fn unified_fd(&self) -> Result<Option<OwnedFd>, CgroupError> {
        if !self.unified {
            return Ok(None);
        }
        let path = self.record.directories.get("").cloned().unwrap_or_default();
        let file = fs::File::open(&path).map_err(|source| CgroupError::Read { path, source })?;
        Ok(Some(file.into()))
    }

    /// The processes in it and in groups below it.
    ///
    /// # Errors
    ///
    /// If its files cannot be read; a group that is gone has none.
    pub fn processes(&self) -> Result<Vec<Pid>, CgroupError> {
        let mut found = Vec::new();
        for name in ["", "freezer", "pids", "memory", "cpu", "devices"] {
            if let Some(directory) = self.record.directories.get(name) {
                collect(directory, &mut found)?;
                break;
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Kills everything in it and below. Returns when the signals are sent; see [`Group::wait_empty`].
    ///
    /// # Errors
    ///
    /// If its files cannot be read or written.
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        if let Some(directory) = self.record.directories.get("") {
            let file = directory.join("cgroup.kill");
            // Linux 5.14; the loop below serves older ones.
            if file.exists() {
                return write(&file, "1");
            }
        }
        // Frozen processes cannot fork away; frozen on v1 they die only once thawed.
        let frozen = self.freeze().is_ok();
        let killed = self.processes().map(|pids| {
            for pid in pids {
                // Gone already is as good.
                let _gone = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        });
        if frozen {
            self.thaw()?;
        }
        killed
    }

    /// Waits until no process is left in it.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Timeout`] after ten seconds.
    pub fn wait_empty(&self) -> Result<(), CgroupError> {
        wait_for(&self.record.path, "the end of all processes", || {
            Ok(self.processes()?.is_empty())
        })
    }

    /// Stops all processes in it, as they are.
    ///
    /// # Errors
    ///
    /// If the host has no freezer, or it takes too long.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        self.freezer(true)
    }

    /// Lets them go on.
    ///
    /// # Errors
    ///
    /// As [`Group::freeze`].
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.freezer(false)
    }

    fn freezer(&self, frozen: bool) -> Result<(), CgroupError> {
        let directory = self.freezer_directory()?;
        if self.unified {
            write(
                &directory.join("cgroup.freeze"),
                if frozen { "1" } else { "0" },
            )?;
        } else {
            write(
                &directory.join("freezer.state"),
                if frozen { "FROZEN" } else { "THAWED" },
            )?;
        }
        wait_for(directory, "the freezer", || {
            let now = self.is_frozen()?;
            if now != frozen && !self.unified && frozen {
                // A process that forked in between leaves v1 in FREEZING until it is asked again.
                write(&directory.join("freezer.state"), "FROZEN")?;
            }
            Ok(now == frozen)
        })
    }

    /// Whether all processes in it are stopped by the freezer.
    ///
    /// # Errors
    ///
    /// If the host has no freezer.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        let directory = self.freezer_directory()?;
        if self.unified {
            return Ok(read(&directory.join("cgroup.events"))?
                .lines()
                .any(|line| line == "frozen 1"));
        }
        Ok(read(&directory.join("freezer.state"))?.trim() == "FROZEN")
    }

    fn freezer_directory(&self) -> Result<&Path, CgroupError> {
        self.directory("freezer")
            .ok_or_else(|| CgroupError::NoController {
                controller: "freezer".into(),
                wanted_by: "pause".into(),
            })
    }

    /// What was used so far.
    ///
    /// # Errors
    ///
    /// If a file cannot be read; controllers that the host has not give zeros.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        stats::read(self)
    }

    /// The text of a controller's file, if the host has it: for who shows more than [`Stats`].
    pub fn text(&self, controller: &str, file: &str) -> Option<String> {
        fs::read_to_string(self.directory(controller)?.join(file)).ok()
    }

    /// Out-of-memory kills, as events.
    ///
    /// # Errors
    ///
    /// If the host has no memory controller.
    pub fn oom_events(&self) -> Result<OomEvents, CgroupError> {
        OomEvents::open(self)
    }

    /// Removes what [`Group::create`] made of it, and groups that its processes made below, if all are empty.
    ///
    /// Parents that we made go too, unless something else lives in them by now.
    ///
    /// # Errors
    ///
    /// If a process is still in it after ten seconds.
    pub fn remove(&self) -> Result<(), CgroupError> {
        for (index, directory) in self.record.made.iter().enumerate().rev() {
            let leaf = self
                .record
                .directories
                .values()
                .any(|leaf| leaf == directory);
            debug_assert!(index < self.record.made.len());
            if leaf {
                remove_tree(directory)?;
            } else {
                // Someone else's group in a parent of ours keeps that parent.
                let _used = fs::remove_dir(directory);
            }
        }
        Ok(())
    }

    /// The group's directories, each once (several v1 controllers can share one).
    fn distinct(&self) -> impl Iterator<Item = &PathBuf> {
        let mut seen: Vec<&PathBuf> = self.record.directories.values().collect();
        seen.sort_unstable();
        seen.dedup();
        seen.into_iter()
    }
}

/// The path without its leading slash; `..` is refused, because it would leave what is ours.
fn relative(path: &Path) -> Result<PathBuf, CgroupError> {
    let mut relative = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => relative.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(CgroupError::InvalidPath {
                    path: path.to_owned(),
                });
            }
        }
    }
    if relative.as_os_str().is_empty() {
        return Err(CgroupError::InvalidPath {
            path: path.to_owned(),
        });
    }
    Ok(relative)
}

/// Makes `root/relative` and what is missing above it, and notes what was made, also if it fails half way.
fn make_directories(
    root: &Path,
    relative: &Path,
    made: &mut Vec<PathBuf>,
    each: &mut dyn FnMut(&Path, bool) -> Result<(), CgroupError>,
) -> Result<PathBuf, CgroupError> {
    let leaf = root.join(relative);
    // A parent that another container's deletion removes between two steps is made again.
    'again: for _attempt in 0..16 {
        let mut directory = root.to_owned();
        for component in relative.components() {
            directory.push(component);
            match fs::create_dir(&directory) {
                Ok(()) => {
                    if !made.contains(&directory) {
                        made.push(directory.clone());
                    }
                    each(&directory, directory == leaf)?;
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    each(&directory, directory == leaf)?
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound && directory != root => {
                    continue 'again;
                }
                Err(source) => {
                    return Err(CgroupError::Create {
                        path: directory,
                        source,
                    });
                }
            }
        }
        return Ok(leaf);
    }
    Err(CgroupError::Create {
        path: leaf,
        source: io::ErrorKind::NotFound.into(),
    })
}

/// Performs writes in order; several to one file in a row, as with device rules, open it once.
#[derive(Default)]
struct Performer {
    open: Option<(PathBuf, fs::File)>,
}

impl Performer {
    fn perform(&mut self, directory: &Path, order: &Write1) -> Result<(), CgroupError> {
        let done = self.write(directory.join(&order.file), &order.value);
        let done = match (done, &order.otherwise) {
            (Err(CgroupError::Write { source, .. }), Some((file, value)))
                if source.kind() == io::ErrorKind::NotFound =>
            {
                self.write(directory.join(file), value)
            }
            (done, _) => done,
        };
        match done {
            Err(_) if order.optional => Ok(()),
            // A file that the kernel does not have: say what wanted it.
            Err(CgroupError::Write { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(CgroupError::NoController {
                    controller: format!("{} ({})", order.controller, order.file),
                    wanted_by: order.wanted_by.to_owned(),
                })
            }
            done => done,
        }
    }

    fn write(&mut self, path: PathBuf, value: &str) -> Result<(), CgroupError> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != path) {
            let file = fs::OpenOptions::new().write(true).open(&path);
            let file = file.map_err(|source| CgroupError::Write {
                path: path.clone(),
                value: value.to_owned(),
                source,
            })?;
            self.open = Some((path.clone(), file));
        }
        let (_, file) = self.open.as_mut().expect("set above");
        let done = file.write_all(value.as_bytes());
        done.map_err(|source| CgroupError::Write {
            path,
            value: value.to_owned(),
            source,
        })
    }
}

/// Control files are written with one write(2) each: the kernel parses each call by itself.
pub(crate) fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    let done = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()));
    done.map_err(|source| CgroupError::Write {
        path: path.to_owned(),
        value: value.to_owned(),
        source,
    })
}

pub(crate) fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| CgroupError::Read {
        path: path.to_owned(),
        source,
    })
}

fn collect(directory: &Path, found: &mut Vec<Pid>) -> Result<(), CgroupError> {
    let path = directory.join("cgroup.procs");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        // Removed meanwhile, or a threaded v2 group, whose processes its domain lists.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)
            ) =>
        {
            return Ok(());
        }
        Err(source) => return Err(CgroupError::Read { path, source }),
    };
    found.extend(processes_in(&text));
    for child in children(directory) {
        collect(&child, found)?;
    }
    Ok(())
}

/// From the text of `cgroup.procs`. A process of another PID namespace is shown as 0, which kill(2) would take for the
/// caller's own process group.
fn processes_in(text: &str) -> impl Iterator<Item = Pid> {
    let numbers = text.lines().filter_map(|line| line.parse().ok());
    numbers.filter(|number| *number > 0).map(Pid::from_raw)
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let directories = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}

/// A group can be removed a moment after its last process was killed: the kernel says `EBUSY` till then.
fn remove_tree(directory: &Path) -> Result<(), CgroupError> {
    let mut result = Ok(());
    let waited = wait_for(directory, "the end of all processes", || {
        match fs::remove_dir(directory) {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(source) => {
                result = Err(CgroupError::Remove {
                    path: directory.to_owned(),
                    source,
                });
                return Ok(true);
            }
        }
        for child in children(directory) {
            remove_tree(&child)?;
        }
        Ok(false)
    });
    waited.and(result)
}

/// Asks again and again, at first at once, then with growing pauses (the kernel has no event for these on v1).
fn wait_for(
    path: &Path,
    what: &'static str,
    mut done: impl FnMut() -> Result<bool, CgroupError>,
) -> Result<(), CgroupError> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(100);
    while !done()? {
        if Instant::now() > deadline {
            return Err(CgroupError::Timeout {
                what,
                path: path.to_owned(),
            });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_path_never_leaves_its_hierarchy() {
        assert!(relative(Path::new("/a/../../b")).is_err());
        assert!(relative(Path::new("/")).is_err());
        assert_eq!(relative(Path::new("/a/./b")).unwrap(), Path::new("a/b"));
        assert_eq!(relative(Path::new("a")).unwrap(), Path::new("a"));
    }
}
