//! The processes of a group: entered, listed, stopped, killed.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::file::{read, write};
use super::{CgroupError, Group};

/// How long to wait for the freezer and for processes to leave a group.
const PATIENCE: Duration = Duration::from_secs(10);

impl Group {
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
pub(super) fn processes_in(text: &str) -> impl Iterator<Item = Pid> {
    let numbers = text.lines().filter_map(|line| line.parse().ok());
    numbers.filter(|number| *number > 0).map(Pid::from_raw)
}

pub(super) fn children(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let directories = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}

/// Asks again and again, at first at once, then with growing pauses (the kernel has no event for these on v1).
pub(super) fn wait_for(
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
