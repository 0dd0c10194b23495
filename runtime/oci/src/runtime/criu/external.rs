//! What of a container comes from outside, and is not in criu's images: bind mounts, control groups, devices of the host,
//! masks, and what its standard streams lead to.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::wire::ExternalMount;
use crate::cgroup::GroupRecord;
use crate::mount::Options;
use crate::rootfs::by_directory;
use crate::sys;

/// A mount from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// Where the configuration wants it: also its name in the images, so that another source can take its place.
    pub destination: PathBuf,
    /// Where it is on the host.
    pub source: PathBuf,
}

/// What the kernel's `/dev/null` covers in a container goes by this name.
const MASK: &str = "/dev/null";

/// All mounts from outside that a configuration speaks of.
pub fn mounts(spec: &Spec, group: &GroupRecord, bundle: &Path) -> Vec<External> {
    let linux = spec.linux().as_ref();
    let has = |wanted: LinuxNamespaceType| {
        linux
            .and_then(|linux| linux.namespaces().as_ref())
            .is_some_and(|all| all.iter().any(|one| one.typ() == wanted))
    };
    let mut found = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        let Ok(options) = Options::parse(mount.options().as_deref().unwrap_or_default()) else {
            continue;
        };
        let typ = mount.typ().as_deref();
        let destination = mount.destination();
        match mount.source() {
            _ if options.remount => {}
            Some(source) if options.is_bind(typ) => {
                let source = bundle.join(source);
                if !(options.copy_symlink && source.is_symlink()) {
                    found.push(External {
                        destination: destination.clone(),
                        source,
                    });
                }
            }
            _ if matches!(typ, Some("cgroup" | "cgroup2")) => {
                found.extend(groups(destination, group, has(LinuxNamespaceType::Cgroup)));
            }
            _ => {}
        }
    }
    let devices = linux.and_then(|linux| linux.devices().as_ref());
    let mut nodes: Vec<PathBuf> = devices
        .into_iter()
        .flatten()
        .map(|device| device.path().clone())
        .collect();
    if has(LinuxNamespaceType::User) {
        // Nobody can make devices there: the host's are bound.
        let all = ["null", "zero", "full", "tty", "random", "urandom"];
        nodes.extend(all.map(|name| Path::new("/dev").join(name)));
    }
    found.extend(nodes.into_iter().map(|path| External {
        destination: path.clone(),
        source: path,
    }));
    found
}

/// The container's groups where they are bound. A new cgroup2 mount in a cgroup namespace is criu's business.
fn groups(destination: &Path, group: &GroupRecord, namespace: bool) -> Vec<External> {
    if let Some(directory) = group.directories.get("") {
        let bound = External {
            destination: destination.to_owned(),
            source: directory.clone(),
        };
        return if namespace { Vec::new() } else { vec![bound] };
    }
    let all = by_directory(&group.directories).into_iter();
    all.map(|(directory, controllers)| External {
        destination: destination.join(controllers.join(",")),
        source: directory.to_owned(),
    })
    .collect()
}

/// For saving: from places in the container, as its root leads there, to names. `root` is its `/proc/<pid>/root`.
pub fn to_save(root: &Path, spec: &Spec, mounts: &[External]) -> io::Result<Vec<ExternalMount>> {
    let root = fs::File::open(root)?;
    let resolve = |path: &Path| -> io::Result<Option<(PathBuf, fs::Metadata)>> {
        let text = sys::c_path(path)?;
        match sys::open_in_root(root.as_fd(), &text, nix::libc::O_PATH) {
            Ok(fd) => {
                let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
                Ok(Some((fs::read_link(&link)?, fs::metadata(&link)?)))
            }
            // Nothing is there any more, or a configuration speaks of something that it has not.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    };
    let mut named = Vec::new();
    for mount in mounts {
        if let Some((place, _)) = resolve(&mount.destination)? {
            named.push(ExternalMount {
                key: text(&place)?,
                val: text(&mount.destination)?,
            });
        }
    }
    let masked = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.masked_paths().as_ref());
    for path in masked.into_iter().flatten() {
        // Directories are masked by an empty file system, which is saved like any other.
        if let Some((place, meta)) = resolve(Path::new(path))?
            && !meta.is_dir()
        {
            named.push(ExternalMount {
                key: text(&place)?,
                val: MASK.to_owned(),
            });
        }
    }
    Ok(named)
}

/// For restoring: from names to sources.
pub fn to_restore(mounts: &[External]) -> io::Result<Vec<ExternalMount>> {
    let named = mounts.iter().map(|mount| {
        Ok(ExternalMount {
            key: text(&mount.destination)?,
            val: text(&mount.source)?,
        })
    });
    let mask = Ok(ExternalMount {
        key: MASK.to_owned(),
        val: MASK.to_owned(),
    });
    named.chain([mask]).collect()
}

/// A path as criu takes it.
pub fn text(path: &Path) -> io::Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a path that is not UTF-8"))
}

/// What a descriptor of a container leads to, as criu names it: in `descriptors.json`, and to pass another one for it.
///
/// A pipe or socket by its kernel's name; a file of the host, which the container's mounts do not lead to, as
/// `file[mount:inode]`; anything else by its path, and it is saved.
pub fn descriptor(pid: i32, number: u32) -> io::Result<String> {
    let path = PathBuf::from(format!("/proc/{pid}/fd/{number}"));
    let link = match fs::read_link(&path) {
        // Closed by now.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        link => link?.to_string_lossy().into_owned(),
    };
    // Terminals are criu's business (orphans, and those of the caller's session).
    if !link.starts_with('/') || link.starts_with("/dev/pts/") || link.starts_with("/dev/tty") {
        return Ok(link);
    }
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"))?;
    let mount = info
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))
        .map(str::trim)
        .and_then(|text| text.parse::<u32>().ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    let own = mounts.lines().any(|line| {
        let id = line.split_once(' ').map(|(id, _)| id.parse::<u32>());
        id == Some(Ok(mount))
    });
    if own {
        return Ok(link);
    }
    let inode = fs::metadata(&path)?.ino();
    Ok(format!("file[{mount:x}:{inode:x}]"))
}

/// What criu has to be told of such a descriptor when it is saved.
pub fn external(descriptor: &str) -> Option<String> {
    if descriptor.starts_with("file[") {
        return Some(descriptor.to_owned());
    }
    let inode = descriptor.strip_prefix("socket:[")?.strip_suffix(']')?;
    Some(format!("unix[{inode}]"))
}

/// Whether another one is passed for it when it is restored.
pub fn is_passed(descriptor: &str) -> bool {
    ["pipe:[", "socket:[", "file["]
        .iter()
        .any(|start| descriptor.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_named_as_criu_does() {
        assert_eq!(external("file[1f:2a]").unwrap(), "file[1f:2a]");
        assert_eq!(external("socket:[77]").unwrap(), "unix[77]");
        assert_eq!(external("pipe:[77]"), None);
        assert!(is_passed("pipe:[77]") && !is_passed("/dev/null") && !is_passed(""));
    }

    #[test]
    fn a_file_of_our_own_mounts_is_saved_and_a_pipe_passed() {
        let pid = std::process::id() as i32;
        let file = tempfile::tempfile().unwrap();
        let name = descriptor(pid, file.as_raw_fd() as u32).unwrap();
        assert!(name.starts_with('/'), "{name}");
        let (pipe, _other) = nix::unistd::pipe().unwrap();
        let name = descriptor(pid, pipe.as_raw_fd() as u32).unwrap();
        assert!(is_passed(&name), "{name}");
    }

    #[test]
    fn bind_mounts_devices_and_groups_come_from_outside() {
        let spec: Spec = serde_json::from_value(serde_json::json!({
            "ociVersion": "1.0.2",
            "root": { "path": "rootfs" },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/etc/hosts", "type": "bind", "source": "hosts", "options": ["rbind"] },
                { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup" },
            ],
            "linux": { "devices": [{ "path": "/dev/kvm", "type": "c", "major": 10, "minor": 232 }] },
        }))
        .unwrap();
        let mut group = GroupRecord::default();
        for controller in ["cpu", "cpuacct"] {
            group
                .directories
                .insert(controller.to_owned(), "/sys/fs/cgroup/cpu/x".into());
        }
        let found: Vec<(PathBuf, PathBuf)> = mounts(&spec, &group, Path::new("/bundle"))
            .into_iter()
            .map(|mount| (mount.destination, mount.source))
            .collect();
        let expected = [
            ("/etc/hosts", "/bundle/hosts"),
            ("/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu/x"),
            ("/dev/kvm", "/dev/kvm"),
        ];
        let expected: Vec<(PathBuf, PathBuf)> =
            expected.map(|(one, two)| (one.into(), two.into())).into();
        assert_eq!(found, expected);
    }
}
