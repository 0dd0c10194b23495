//! Which namespaces a container makes, which it joins, and which it leaves shared with the host.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::sched::CloneFlags;
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};

/// The kinds of namespace, declared in the order in which a container enters them.
///
/// `User` is first, because it gives the rights over the rest; `Mount` is last: what the others need is looked up in the
/// host's mount namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Users and capabilities.
    User,
    /// Processes.
    Pid,
    /// Network.
    Network,
    /// System V IPC and POSIX queues.
    Ipc,
    /// Host name.
    Uts,
    /// Monotonic and boot clocks.
    Time,
    /// The view of the cgroup tree.
    Cgroup,
    /// Mounts.
    Mount,
}

impl Kind {
    /// All of them, in order of entry.
    pub const ALL: [Self; 8] = [
        Self::User,
        Self::Pid,
        Self::Network,
        Self::Ipc,
        Self::Uts,
        Self::Time,
        Self::Cgroup,
        Self::Mount,
    ];

    /// The kernel's flag.
    pub fn flag(self) -> CloneFlags {
        match self {
            Self::User => CloneFlags::CLONE_NEWUSER,
            Self::Pid => CloneFlags::CLONE_NEWPID,
            Self::Network => CloneFlags::CLONE_NEWNET,
            Self::Ipc => CloneFlags::CLONE_NEWIPC,
            Self::Uts => CloneFlags::CLONE_NEWUTS,
            Self::Time => CloneFlags::from_bits_retain(0x80),
            Self::Cgroup => CloneFlags::CLONE_NEWCGROUP,
            Self::Mount => CloneFlags::CLONE_NEWNS,
        }
    }

    /// The name of its link in `/proc/<pid>/ns`.
    pub fn link(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Pid => "pid",
            Self::Network => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Time => "time",
            Self::Cgroup => "cgroup",
            Self::Mount => "mnt",
        }
    }

    pub(crate) fn from_spec(kind: LinuxNamespaceType) -> Self {
        match kind {
            LinuxNamespaceType::User => Self::User,
            LinuxNamespaceType::Pid => Self::Pid,
            LinuxNamespaceType::Network => Self::Network,
            LinuxNamespaceType::Ipc => Self::Ipc,
            LinuxNamespaceType::Uts => Self::Uts,
            LinuxNamespaceType::Time => Self::Time,
            LinuxNamespaceType::Cgroup => Self::Cgroup,
            LinuxNamespaceType::Mount => Self::Mount,
        }
    }
}

/// Where a namespace comes from.
#[derive(Debug)]
pub enum Origin {
    /// Made for this container.
    New,
    /// There already, opened by its path.
    Joined(OwnedFd),
}

/// What is wrong with a list of namespaces.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// OCI runtime-spec, config-linux.md, "Namespaces".
    #[error("namespace {kind:?} is listed twice")]
    Twice {
        /// Which.
        kind: Kind,
    },
    /// The path cannot be opened.
    #[error("open the {kind:?} namespace {path}", path = path.display())]
    Open {
        /// Which.
        kind: Kind,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path leads to something else.
    #[error("{path} is no {kind:?} namespace", path = path.display())]
    WrongKind {
        /// Which was wanted.
        kind: Kind,
        /// Its path.
        path: PathBuf,
    },
}

/// The namespaces of one container: at most one of each kind, in the order of entry.
#[derive(Debug, Default)]
pub struct NamespaceSet(BTreeMap<Kind, Origin>);

impl NamespaceSet {
    /// Opens what is joined by path.
    ///
    /// # Errors
    ///
    /// A kind listed twice, a path that cannot be opened, or that is a namespace of another kind.
    pub fn open(list: &[LinuxNamespace]) -> Result<Self, NamespaceError> {
        let mut set = BTreeMap::new();
        for namespace in list {
            let kind = Kind::from_spec(namespace.typ());
            let origin = match namespace.path() {
                Some(path) if !path.as_os_str().is_empty() => {
                    let file =
                        std::fs::File::open(path).map_err(|source| NamespaceError::Open {
                            kind,
                            path: path.clone(),
                            source,
                        })?;
                    let fd = OwnedFd::from(file);
                    if !crate::sys::is_namespace_of(&fd, kind.flag()) {
                        return Err(NamespaceError::WrongKind {
                            kind,
                            path: path.clone(),
                        });
                    }
                    Origin::Joined(fd)
                }
                _ => Origin::New,
            };
            if set.insert(kind, origin).is_some() {
                return Err(NamespaceError::Twice { kind });
            }
        }
        Ok(Self(set))
    }

    /// Whether the container has one of its own or joined of this kind, rather than the host's.
    pub fn contains(&self, kind: Kind) -> bool {
        self.0.contains_key(&kind)
    }

    /// Whether one of this kind is made.
    pub fn is_new(&self, kind: Kind) -> bool {
        matches!(self.0.get(&kind), Some(Origin::New))
    }

    /// The descriptor of the one that is joined.
    pub fn joined(&self, kind: Kind) -> Option<&OwnedFd> {
        match self.0.get(&kind) {
            Some(Origin::Joined(fd)) => Some(fd),
            _ => None,
        }
    }

    /// Those joined, in the order of entry.
    pub fn all_joined(&self) -> impl Iterator<Item = (Kind, &OwnedFd)> {
        self.0.iter().filter_map(|(kind, origin)| match origin {
            Origin::Joined(fd) => Some((*kind, fd)),
            Origin::New => None,
        })
    }

    /// The flags of all that are made.
    pub fn new_flags(&self) -> CloneFlags {
        let new = self
            .0
            .iter()
            .filter(|(_, origin)| matches!(origin, Origin::New));
        new.fold(CloneFlags::empty(), |flags, (kind, _)| flags | kind.flag())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(json: &str) -> LinuxNamespace {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_kind_listed_twice_is_an_error() {
        let list = [
            namespace(r#"{"type":"pid"}"#),
            namespace(r#"{"type":"pid"}"#),
        ];
        assert!(matches!(
            NamespaceSet::open(&list),
            Err(NamespaceError::Twice { kind: Kind::Pid })
        ));
    }

    #[test]
    fn a_path_to_another_kind_is_an_error() {
        let list = [namespace(r#"{"type":"pid","path":"/proc/self/ns/net"}"#)];
        assert!(matches!(
            NamespaceSet::open(&list),
            Err(NamespaceError::WrongKind {
                kind: Kind::Pid,
                ..
            })
        ));
        let list = [namespace(r#"{"type":"pid","path":"/dev/null"}"#)];
        assert!(matches!(
            NamespaceSet::open(&list),
            Err(NamespaceError::WrongKind { .. })
        ));
    }

    #[test]
    fn new_and_joined_are_told_apart() {
        let list = [
            namespace(r#"{"type":"network","path":"/proc/self/ns/net"}"#),
            namespace(r#"{"type":"mount"}"#),
        ];
        let set = NamespaceSet::open(&list).unwrap();
        assert_eq!(set.new_flags(), CloneFlags::CLONE_NEWNS);
        assert!(
            set.joined(Kind::Network).is_some()
                && set.is_new(Kind::Mount)
                && !set.contains(Kind::User)
        );
    }
}
