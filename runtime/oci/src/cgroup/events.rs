//! Out-of-memory kills as events: an eventfd on v1, inotify on `memory.events` on v2.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{CgroupError, Group};

/// A descriptor that becomes readable when the kernel may have killed for lack of memory in a group.
///
/// Poll it; then ask [`OomEvents::kills`], because it also wakes for less, and when the group is removed.
#[derive(Debug)]
pub struct OomEvents {
    source: Source,
    directory: PathBuf,
}

#[derive(Debug)]
enum Source {
    /// v1: registered at the group's `cgroup.event_control`; the control file must stay open no longer than that.
    Eventfd(EventFd),
    /// v2.
    Inotify(Inotify),
}

impl OomEvents {
    pub(super) fn open(group: &Group) -> Result<Self, CgroupError> {
        let directory = group
            .directory("memory")
            .ok_or_else(|| CgroupError::NoController {
                controller: "memory".into(),
                wanted_by: "OOM events".into(),
            })?
            .to_owned();
        let source = if group.is_unified() {
            inotify(&directory)
        } else {
            eventfd(&directory)
        };
        let source = source.map_err(|source| CgroupError::Read {
            path: directory.clone(),
            source,
        })?;
        Ok(Self { source, directory })
    }

    /// Takes the pending events off the descriptor, and tells how many processes were killed since the group was made.
    pub fn kills(&self) -> u64 {
        // Both are non-blocking: nothing pending is no error here.
        match &self.source {
            Source::Eventfd(fd) => drop(fd.read()),
            Source::Inotify(fd) => drop(fd.read_events()),
        }
        let file = if matches!(self.source, Source::Eventfd(_)) {
            "memory.oom_control"
        } else {
            "memory.events"
        };
        let text = std::fs::read_to_string(self.directory.join(file)).unwrap_or_default();
        kills(&text)
    }
}

/// From the text of `memory.events` or `memory.oom_control`.
pub(super) fn kills(text: &str) -> u64 {
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

impl AsFd for OomEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.source {
            Source::Eventfd(fd) => fd.as_fd(),
            Source::Inotify(fd) => fd.as_fd(),
        }
    }
}

fn eventfd(directory: &std::path::Path) -> std::io::Result<Source> {
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let control: OwnedFd = File::open(directory.join("memory.oom_control"))?.into();
    let line = format!("{} {}", event.as_fd().as_raw_fd(), control.as_raw_fd());
    std::fs::write(directory.join("cgroup.event_control"), line)?;
    Ok(Source::Eventfd(event))
}

fn inotify(directory: &std::path::Path) -> std::io::Result<Source> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    inotify.add_watch(&directory.join("memory.events"), AddWatchFlags::IN_MODIFY)?;
    Ok(Source::Inotify(inotify))
}
