//! Id-mapped mounts: files of a mount appear with other owners than they have on disk.
//!
//! The kernel takes the mapping as a user namespace. One that nobody lives in is made for it: by a child that waits until
//! its namespace has been opened, and ends. The mount must be mapped by whoever has rights over its file system, so the
//! maker does it, not the container's process.
//!
//! Source: OCI runtime-spec, config.md, "Mounts"; mount_setattr(2), Linux 5.12.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use oci_spec::runtime::{Linux, LinuxIdMapping, Mount};

use crate::error::CreateError;
use crate::message::Channel;
use crate::mount::{self, Options};
use crate::namespace::{Kind, NamespaceSet};
use crate::sys::{self, Fork, MountAttr};

/// How the ids of one mount are mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted<'a> {
    /// Not at all.
    Unmapped,
    /// Like this: users, groups.
    Mapped(&'a [LinuxIdMapping], &'a [LinuxIdMapping]),
    /// Like the user namespace that the container joins.
    Joined,
}

impl<'a> Wanted<'a> {
    /// From the mount's options and mappings, or else the container's.
    ///
    /// # Errors
    ///
    /// For half a mapping, a mapping that nobody gives, and for anything but a bind mount.
    pub fn of(
        mount: &'a Mount,
        options: &Options,
        linux: &'a Linux,
        namespaces: &NamespaceSet,
    ) -> Result<Self, CreateError> {
        let bad = |what: &str| {
            let destination = mount.destination().display();
            Err(CreateError::invalid(format!("mount {destination}: {what}")))
        };
        let some =
            |list: &'a Option<Vec<LinuxIdMapping>>| list.as_deref().filter(|list| !list.is_empty());
        let given = (some(mount.uid_mappings()), some(mount.gid_mappings()));
        if options.idmap.is_none() && given == (None, None) {
            return Ok(Self::Unmapped);
        }
        if !options.is_bind(mount.typ().as_deref()) || options.remount {
            return bad("only bind mounts can be id-mapped");
        }
        match given {
            (Some(users), Some(groups)) => Ok(Self::Mapped(users, groups)),
            (None, None) if namespaces.joined(Kind::User).is_some() => Ok(Self::Joined),
            (None, None) => match (some(linux.uid_mappings()), some(linux.gid_mappings())) {
                (Some(users), Some(groups)) if namespaces.is_new(Kind::User) => {
                    Ok(Self::Mapped(users, groups))
                }
                _ => bad("idmap without mappings, of its own or of a user namespace"),
            },
            _ => bad("uidMappings and gidMappings go together"),
        }
    }
}

/// Maps the ids of mounts; makes each mapping's namespace once.
#[derive(Debug, Default)]
pub(crate) struct Mapper<'a> {
    made: Vec<(Wanted<'a>, OwnedFd)>,
}

impl<'a> Mapper<'a> {
    /// Maps a detached mount, and all below it if `recursive`.
    ///
    /// # Errors
    ///
    /// `EINVAL` from a file system that cannot be mapped.
    pub fn map(
        &mut self,
        tree: BorrowedFd<'_>,
        wanted: &Wanted<'a>,
        recursive: bool,
        namespaces: &NamespaceSet,
    ) -> Result<(), CreateError> {
        let namespace = match wanted {
            Wanted::Unmapped => return Ok(()),
            Wanted::Joined => namespaces
                .joined(Kind::User)
                .expect("looked at when it was wanted"),
            Wanted::Mapped(users, groups) => {
                let index = match self.made.iter().position(|(made, _)| made == wanted) {
                    Some(index) => index,
                    None => {
                        self.made
                            .push((wanted.clone(), user_namespace(users, groups)?));
                        self.made.len() - 1
                    }
                };
                &self.made[index].1
            }
        };
        let attr = MountAttr {
            set: mount::IDMAP,
            userns_fd: std::os::fd::AsRawFd::as_raw_fd(namespace) as u64,
            ..MountAttr::default()
        };
        sys::mount_setattr(tree, c"", recursive, &attr)
            .map_err(CreateError::system("map the ids of a mount"))
    }
}

/// A user namespace with these mappings and no process.
fn user_namespace(
    users: &[LinuxIdMapping],
    groups: &[LinuxIdMapping],
) -> Result<OwnedFd, CreateError> {
    let (ours, theirs) = Channel::pair().map_err(CreateError::system("make a socket pair"))?;
    let flags = u64::from(CloneFlags::CLONE_NEWUSER.bits() as u32);
    let forked = sys::clone3(flags, None).map_err(CreateError::system("make a user namespace"))?;
    let (pid, pidfd) = match forked {
        Fork::Child => {
            drop(ours);
            // Lives until it is killed, or its maker is gone.
            let _gone = theirs.wait();
            sys::exit_now(0)
        }
        Fork::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop(theirs);
    let open = || {
        for (file, list) in [("uid_map", users), ("gid_map", groups)] {
            let path = format!("/proc/{pid}/{file}");
            let lines: String = list
                .iter()
                .map(|map| format!("{} {} {}\n", map.container_id(), map.host_id(), map.size()))
                .collect();
            fs::write(&path, lines).map_err(CreateError::system(format!("write {path}")))?;
        }
        let path = format!("/proc/{pid}/ns/user");
        let file = fs::File::open(&path).map_err(CreateError::system(format!("open {path}")))?;
        Ok(OwnedFd::from(file))
    };
    let opened = open();
    // It has ended already if its namespace could not be used.
    let _ended = sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
    waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED)
        .map_err(std::io::Error::from)
        .map_err(CreateError::system("await the mapping's process"))?;
    opened
}
