//! One file or directory inside a volume, mounted without a race.
//!
//! Whoever writes to the volume can swap directories for links while we look. So the path is resolved inside the
//! volume by descriptor, and the descriptor is bound to a place that containers cannot reach; that place is what the
//! container gets (CVE-2017-1002101, CVE-2021-25741).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use knarr_tree::UnmountError;
use nix::fcntl::{OFlag, openat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use pathrs::Root;

use crate::env;

/// Why a mount's path inside its volume is not one. Source of the words: kubernetes, pkg/kubelet/kubelet_pods.go, `makeMounts`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidSubPath {
    #[error("missing value for {}", .names.join(", "))]
    Missing { names: Vec<String> },
    #[error("error SubPath `{path}` must not be an absolute path")]
    Absolute { path: String },
    #[error("unable to provision SubPath `{path}`: must not contain '..'")]
    Up { path: String },
}

/// Replaces the variables of `subPathExpr`; each must have a value that is not empty.
pub(super) fn expand(
    expression: &str,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<String, InvalidSubPath> {
    let missing = std::cell::RefCell::new(BTreeSet::new());
    let expanded = env::expand(expression, |name| {
        let value = lookup(name).unwrap_or_default();
        if value.is_empty() {
            missing.borrow_mut().insert(name.to_owned());
        }
        Some(value)
    });
    let names: Vec<String> = missing.into_inner().into_iter().collect();
    match names.is_empty() {
        true => Ok(expanded),
        false => Err(InvalidSubPath::Missing { names }),
    }
}

/// Checks that a path stays inside its volume; variables may have brought what the API would have refused.
pub(super) fn check(path: &str) -> Result<(), InvalidSubPath> {
    let own = || path.to_owned();
    if path.starts_with('/') {
        Err(InvalidSubPath::Absolute { path: own() })
    } else if path.split('/').any(|part| part == "..") {
        Err(InvalidSubPath::Up { path: own() })
    } else {
        Ok(())
    }
}

/// Why a path inside a volume could not be mounted.
#[derive(Debug, thiserror::Error)]
pub(super) enum SubPathError {
    #[error("resolve {path:?} inside {volume:?}")]
    Resolve {
        volume: PathBuf,
        path: PathBuf,
        source: pathrs::error::Error,
    },
    #[error("make {path:?}")]
    Make { path: PathBuf, source: io::Error },
    #[error("unmount what was bound to {path:?} before")]
    Unmount { path: PathBuf, source: UnmountError },
    #[error("bind to {path:?}")]
    Bind { path: PathBuf, source: nix::Error },
}

impl SubPathError {
    /// What the pod's status says, and no more: the rest would tell of the host's files.
    pub(super) fn message(&self, mount: &str, container: &str) -> String {
        let what = match self {
            Self::Resolve { .. } | Self::Make { .. } => "create subPath directory",
            Self::Unmount { .. } | Self::Bind { .. } => "prepare subPath",
        };
        format!("failed to {what} for volumeMount \"{mount}\" of container \"{container}\"")
    }
}

/// Whether mounts that a container makes below its mount are to be seen in the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Events {
    /// The host's mounts reach the container, not the other way.
    FromHost,
    /// Both ways.
    BothWays,
}

/// Binds `path` inside `volume` to `place`, making it a directory if there is nothing yet.
pub(super) fn bind(
    volume: &Path,
    path: &Path,
    place: &Path,
    events: Events,
) -> Result<(), SubPathError> {
    let make = |path: &Path| {
        let path = path.to_owned();
        |source| SubPathError::Make { path, source }
    };
    let handle = open_or_make(volume, path)?;
    let source = format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd());
    let directory = fs::metadata(&source)
        .map_err(make(Path::new(&source)))?
        .is_dir();
    // A container that starts again finds the place of its predecessor.
    knarr_tree::unmount(place).map_err(|source| SubPathError::Unmount {
        path: place.to_owned(),
        source,
    })?;
    if let Some(parent) = place.parent() {
        super::disk::private_directories(parent)
            .map_err(|error| make(parent)(io::Error::other(error)))?;
    }
    match fs::symlink_metadata(place) {
        Ok(meta) if meta.is_dir() && !directory => fs::remove_dir(place).map_err(make(place))?,
        Ok(meta) if !meta.is_dir() && directory => fs::remove_file(place).map_err(make(place))?,
        _ => {}
    }
    if directory {
        match fs::create_dir(place) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(make(place)(error));
            }
            _ => {}
        }
    } else {
        File::options()
            .create(true)
            .append(true)
            .open(place)
            .map_err(make(place))?;
    }
    let change = |source: Option<&str>, flags| {
        mount(
            source,
            place,
            None::<&str>,
            flags | MsFlags::MS_REC,
            None::<&str>,
        )
        .map_err(|source| SubPathError::Bind {
            path: place.to_owned(),
            source,
        })
    };
    change(Some(&source), MsFlags::MS_BIND)?;
    match events {
        // Or what is mounted there would be mounted in the host's directory, too, and unmounted with it.
        Events::FromHost => change(None, MsFlags::MS_SLAVE),
        Events::BothWays => Ok(()),
    }
}

/// Opens a path inside a volume. Directories that are missing are made with the mode of the volume itself, whatever the process's
/// umask; their group is that of the directory around them where that says so (set-group-id).
///
/// Source: kubernetes, pkg/volume/util/subpath/subpath_linux.go, `SafeMakeDir`.
fn open_or_make(volume: &Path, path: &Path) -> Result<OwnedFd, SubPathError> {
    let resolve = |source| SubPathError::Resolve {
        volume: volume.to_owned(),
        path: path.to_owned(),
        source,
    };
    let absent = |error: &pathrs::error::Error| {
        use pathrs::error::ErrorKind;
        matches!(error.kind(), ErrorKind::OsError(Some(libc::ENOENT)))
    };
    let root = Root::open(volume).map_err(resolve)?;
    match root.resolve(path) {
        Err(error) if absent(&error) => {}
        other => return other.map(OwnedFd::from).map_err(resolve),
    }
    let make = |at: &Path| {
        let path = volume.join(at);
        |source: nix::Error| SubPathError::Make {
            path,
            source: source.into(),
        }
    };
    let mode = fs::metadata(volume)
        .map_err(|source| SubPathError::Make {
            path: volume.to_owned(),
            source,
        })?
        .mode();
    let mode = Mode::from_bits_truncate(mode & 0o7777);
    let mut at = PathBuf::new();
    let mut handle: Option<OwnedFd> = None;
    let mut missing = false;
    for part in path.components() {
        let Component::Normal(name) = part else {
            continue;
        };
        at.push(name);
        if !missing {
            match root.resolve(&at) {
                Ok(found) => {
                    handle = Some(found.into());
                    continue;
                }
                Err(error) if absent(&error) => missing = true,
                Err(error) => return Err(resolve(error)),
            }
        }
        let parent = match handle.take() {
            Some(parent) => parent,
            None => root.resolve(".").map_err(resolve)?.into(),
        };
        match mkdirat(&parent, name, mode) {
            // Another container of the pod was there first.
            Ok(()) | Err(nix::Error::EEXIST) => {}
            Err(error) => return Err(make(&at)(error)),
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = openat(&parent, name, flags, Mode::empty()).map_err(make(&at))?;
        fchmod(&made, mode).map_err(make(&at))?;
        handle = Some(made);
    }
    match handle {
        Some(handle) => Ok(handle),
        None => root.resolve(".").map(OwnedFd::from).map_err(resolve),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::testing::in_mount_namespace;

    fn bound(volume: &Path, path: &str, place: &Path) -> Result<(), SubPathError> {
        bind(volume, Path::new(path), place, Events::FromHost)
    }

    #[test]
    fn a_path_is_bound_made_and_never_leaves_its_volume() {
        in_mount_namespace(|| {
            let dir = tempfile::tempdir().expect("a directory");
            let (volume, place) = (dir.path().join("volume"), dir.path().join("place/0"));
            fs::create_dir_all(volume.join("sub")).expect("made");
            fs::write(volume.join("sub/file"), "inside").expect("written");
            fs::write(dir.path().join("secret"), "outside").expect("written");
            symlink("../secret", volume.join("escape")).expect("linked");
            symlink("/etc", volume.join("etc")).expect("linked");

            bound(&volume, "sub", &place).expect("a directory");
            assert_eq!(
                fs::read_to_string(place.join("file")).expect("there"),
                "inside"
            );
            bound(&volume, "sub/file", &place).expect("a file in its place");
            assert_eq!(fs::read_to_string(&place).expect("there"), "inside");
            bound(&volume, "new/deep", &place).expect("made");
            assert!(volume.join("new/deep").is_dir());
            bound(&volume, "sub//./dots/.", &place).expect("made");
            assert!(volume.join("sub/dots").is_dir());

            // A link out of the volume is resolved inside it: `secret` and `etc` there, if anything.
            let _inside = bound(&volume, "escape", &place);
            assert_ne!(fs::read_to_string(&place).ok().as_deref(), Some("outside"));
            let _inside = bound(&volume, "etc", &place);
            assert!(!place.join("passwd").exists());
            assert!(!dir.path().join("secret/x").exists());
            knarr_tree::unmount(&place).expect("unmounted");
        });
    }

    #[test]
    fn directories_are_made_with_the_mode_of_the_volume() {
        in_mount_namespace(|| {
            let dir = tempfile::tempdir().expect("a directory");
            let place = dir.path().join("place/0");
            for (name, mode, group) in [
                ("open", 0o777, 0),
                ("grouped", 0o2777, 100),
                ("sticky", 0o1777, 0),
                ("closed", 0o2750, 7),
            ] {
                let volume = dir.path().join(name);
                fs::create_dir(&volume).expect("made");
                std::os::unix::fs::chown(&volume, None, Some(group)).expect("owned");
                fs::set_permissions(&volume, Permissions::from_mode(mode)).expect("mode");
                // What is there already stays as it is.
                fs::create_dir(volume.join("old")).expect("made");
                fs::set_permissions(volume.join("old"), Permissions::from_mode(0o700))
                    .expect("mode");
                for path in ["a/b", "old/new"] {
                    bound(&volume, path, &place).expect("bound");
                }
                let found = |path: &str| {
                    let meta = fs::metadata(volume.join(path)).expect("there");
                    (meta.mode() & 0o7777, meta.gid())
                };
                for path in ["a", "a/b"] {
                    assert_eq!(found(path), (mode, group), "{name}/{path}");
                }
                assert_eq!(found("old").0, 0o700);
                assert_eq!(found("old/new").0, mode);
                knarr_tree::unmount(&place).expect("unmounted");
            }
        });
    }

    /// The host shares its mounts, as systemd has it. What is mounted below a place must not be seen, nor go, elsewhere.
    #[test]
    fn a_place_takes_the_hosts_mounts_and_gives_none_back() {
        in_mount_namespace(|| {
            let dir = tempfile::tempdir().expect("a directory");
            let (volume, place) = (dir.path().join("volume"), dir.path().join("place/0"));
            let tmpfs = |at: &Path| {
                mount(Some("t"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>)
                    .expect("mounted")
            };
            fs::create_dir(&volume).expect("made");
            tmpfs(&volume);
            mount(
                None::<&str>,
                &volume,
                None::<&str>,
                MsFlags::MS_SHARED,
                None::<&str>,
            )
            .expect("shared");
            for sub in ["sub/host", "sub/container"] {
                fs::create_dir_all(volume.join(sub)).expect("made");
            }
            bound(&volume, "sub", &place).expect("bound");
            tmpfs(&volume.join("sub/host"));
            tmpfs(&place.join("container"));
            let mounted = |path: &Path| knarr_tree::is_mount_point(path).expect("there");
            assert!(mounted(&place.join("host")));
            assert!(!mounted(&volume.join("sub/container")));
            bound(&volume, "sub", &place).expect("bound again");
            assert!(mounted(&volume.join("sub/host")), "the host's own stays");
            knarr_tree::unmount(&place).expect("unmounted");
            assert!(mounted(&volume.join("sub/host")), "the host's own stays");
        });
    }

    #[test]
    fn paths_are_refused_in_the_words_of_kubernetes() {
        let lookup = |name: &str| match name {
            "UP" => Some("..".to_owned()),
            "ROOT" => Some("/tmp".to_owned()),
            "NAME" => Some("foo".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (expression, expected) in [
            ("$(NAME)", Ok("foo")),
            ("a/$(NAME)/..b", Ok("a/foo/..b")),
            ("$$(NAME)", Ok("$(NAME)")),
            (
                "$(UP)",
                Err("unable to provision SubPath `..`: must not contain '..'"),
            ),
            (
                "$(NAME)/$(UP)/$(UP)/etc",
                Err("unable to provision SubPath `foo/../../etc`: must not contain '..'"),
            ),
            (
                "$(ROOT)",
                Err("error SubPath `/tmp` must not be an absolute path"),
            ),
            ("$(EMPTY)/$(NAME)", Err("missing value for EMPTY")),
            (
                "$(B)/$(EMPTY)/$(A)/$(B)",
                Err("missing value for A, B, EMPTY"),
            ),
        ] {
            let found = expand(expression, lookup).and_then(|path| check(&path).map(|()| path));
            let found = found.map_err(|error| error.to_string());
            assert_eq!(
                found.as_deref().map_err(String::as_str),
                expected,
                "{expression}"
            );
        }
    }
}
