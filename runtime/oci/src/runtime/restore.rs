//! Making a container from what criu has saved.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::unistd::Pid;
use oci_spec::runtime::Spec;

use super::birth::Newborn;
use super::check::{check, check_namespaces, find_rootfs};
use super::checkpoint::{DESCRIPTORS, OUTSIDE};
use super::create::{start_time, state_file};
use super::criu::external::{self, External};
use super::criu::wire::{CgroupRoot, InheritFd, Request, ask};
use super::criu::{CriuError, CriuOptions, Session, files};
use super::prepare::Prepared;
use super::{Created, Io, Runtime};
use crate::cgroup;
use crate::error::{CreateError, Failure, OrFail, Step};
use crate::hooks;
use crate::id::ContainerId;
use crate::mount::Options;
use crate::namespace::{Kind, NamespaceSet};
use crate::process::Stdio;
use crate::rootfs::{Rootfs, open_path};
use crate::sys::{self, MountAttr};

/// How to restore a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoreOptions {
    /// What checkpoint knows, too.
    pub criu: CriuOptions,
    /// Another security label than the one saved, as `type:name`.
    pub lsm_profile: Option<String>,
    /// Another SELinux context of its mounts than the one saved.
    pub lsm_mount_context: Option<String>,
}

/// A container cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// What comes before its process.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// Not a container of this kind.
    #[error("cannot restore {what}")]
    Unsupported {
        /// Why not.
        what: &'static str,
    },
    /// criu.
    #[error(transparent)]
    Criu(#[from] CriuError),
}

impl Runtime {
    /// Makes a container that goes on where it was saved. Its first process is a child of the caller, and runs.
    ///
    /// # Errors
    ///
    /// See [`RestoreError`]; nothing is left behind then.
    pub fn restore(
        &self,
        id: &ContainerId,
        bundle: &Path,
        spec: &Spec,
        io: impl Into<Io>,
        options: &RestoreOptions,
    ) -> Result<Created, RestoreError> {
        let io = io.into();
        check(spec)?;
        if !nix::unistd::geteuid().is_root() {
            let what = "an ordinary user's container: criu needs root";
            return Err(RestoreError::Unsupported { what });
        }
        let bundle = fs::canonicalize(bundle).map_err(state_file("find the bundle", bundle))?;
        let rootfs = find_rootfs(spec, &bundle)?;
        let linux = spec
            .linux()
            .as_ref()
            .ok_or_else(|| CreateError::invalid("linux is missing"))?;
        let namespaces = NamespaceSet::open(linux.namespaces().as_deref().unwrap_or_default())
            .map_err(CreateError::Namespace)?;
        check_namespaces(spec, &namespaces)?;
        if !namespaces.contains(Kind::Mount) {
            let what = "a container without a mount namespace";
            return Err(RestoreError::Unsupported { what });
        }
        let program = options.criu.find()?;
        let open = options.criu.files(false, "restore.log")?;
        let descriptors = read_descriptors(&options.criu.images)?;

        let reserved = self.reserve(id, &bundle, &rootfs, spec, &namespaces)?;
        let Prepared {
            mut unfinished,
            dir,
            group,
            mut record,
            without_group,
            holder,
        } = self.prepare(reserved, id, spec, &namespaces)?;
        dir.write_config(spec)
            .map_err(state_file("write config.json in", dir.path()))?;
        let mounts = external::mounts(spec, group.record(), &bundle);
        make_mount_points(spec, &rootfs, &mounts)
            .map_err(|failure| CreateError::from_failure(failure, ""))?;
        // criu wants a root that is a mount of its own, and that no other mount covers.
        let root = dir.path().join("criu-root");
        fs::create_dir(&root).map_err(state_file("create", &root))?;

        let streams = streams(&io)?;
        let passed = descriptors
            .iter()
            .zip(&streams)
            .filter(|(name, _)| external::is_passed(name))
            .map(|(name, fd)| (name.clone(), fd.as_fd()));
        let outside = OUTSIDE.iter().filter_map(|(kind, name)| {
            Some(((*name).to_owned(), namespaces.joined(*kind)?.as_fd()))
        });
        let inherited: Vec<(String, BorrowedFd<'_>)> = passed.chain(outside).collect();
        let keep: Vec<RawFd> = inherited.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
        let mut session = Session::start(&program, &open, &keep, || bind_root(&rootfs, &root))?;
        if !without_group {
            group.add(session.pid()).map_err(CreateError::Cgroup)?;
        }
        // What criu makes inherits it.
        if let Some(class) = &record.rdt {
            class.add(session.pid()).map_err(CreateError::Rdt)?;
        }

        let mut asked = options.criu.request(&session, spec);
        let text = |path: &Path| {
            let tell = CreateError::system(format!("tell criu of {}", path.display()));
            external::text(path).map_err(tell)
        };
        asked.root = Some(text(&root)?);
        asked.rst_sibling = Some(true);
        asked.evasive_devices = Some(true);
        asked.lsm_profile = options.lsm_profile.clone();
        asked.lsm_mount_context = options.lsm_mount_context.clone();
        asked.ext_mnt = external::to_restore(&mounts)
            .map_err(CreateError::system("tell criu of the container's mounts"))?;
        asked.cg_root = groups_of(session.pid())?;
        asked.inherit_fd = inherited
            .iter()
            .map(|(key, fd)| InheritFd {
                key: key.clone(),
                fd: fd.as_raw_fd(),
            })
            .collect();
        let request = Request {
            kind: ask::RESTORE,
            opts: Some(asked),
            ..Request::default()
        };
        let mut terminal = None;
        let answer = session.ask(&request, |stage, pid, fd| match stage {
            // Namespaces exist, mounts do not: the moment that create gives to these hooks, as near as criu comes to it.
            "setup-namespaces" => {
                for place in spec.hooks().iter().flat_map(hooks::before_pivot) {
                    let state = hooks::state_for(&record, pid, place.status);
                    place.run(&state).map_err(CreateError::Hook)?;
                }
                Ok(())
            }
            "orphan-pts-master" => {
                terminal = fd;
                Ok(())
            }
            _ => Ok::<_, RestoreError>(()),
        })?;
        let restored = answer
            .restore
            .ok_or(CriuError::Talk(io::ErrorKind::InvalidData.into()))?;
        let pid = Pid::from_raw(restored.pid);
        let pidfd =
            sys::pidfd_open(pid).map_err(CreateError::system("open the restored process"))?;
        unfinished.process = Some(Newborn {
            pid,
            pidfd: Some(pidfd),
        });
        session.finish();
        fs::remove_dir(&root).map_err(state_file("remove", &root))?;
        record.pid = pid.as_raw();
        record.start_time = start_time(pid)?;
        dir.write_record(&record)
            .map_err(state_file("write state.json in", dir.path()))?;
        drop(holder);
        let resources = linux.resources().as_ref();
        Ok(Created {
            pid,
            pidfd: unfinished.keep(),
            terminal,
            waiting: None,
            warnings: resources.map_or_else(Vec::new, |resources| {
                cgroup::ignored(resources, group.is_unified())
            }),
        })
    }
}

/// In criu's process, whose mount namespace ends with it.
fn bind_root(rootfs: &Path, root: &Path) -> Result<(), Failure> {
    let attr = MountAttr {
        propagation: libc::MS_SLAVE,
        ..MountAttr::default()
    };
    sys::mount_setattr(nix::fcntl::AT_FDCWD, c"/", true, &attr)
        .or_fail(Step::Rootfs, || "leave the host's mounts")?;
    let tree = crate::rootfs::open_tree(rootfs, true)?;
    let target = open_path(root).or_fail(Step::Rootfs, || "open the place of the root")?;
    sys::move_mount(tree.as_fd(), target.as_fd()).or_fail(Step::Rootfs, || "mount the root")
}

/// Places for mounts that the rootfs has not: criu makes none. What lies in a file system that is restored comes with it;
/// what lies in a bind mount is made there.
fn make_mount_points(spec: &Spec, rootfs: &Path, externals: &[External]) -> Result<(), Failure> {
    let all = spec.mounts().as_deref().unwrap_or_default();
    for (index, mount) in all.iter().enumerate() {
        let options = Options::parse(mount.options().as_deref().unwrap_or_default())
            .map_err(|error| Failure::new(Step::Mount, error.to_string()))?;
        if options.remount {
            continue;
        }
        let destination = mount.destination();
        let source = |path: &Path| {
            let found = externals.iter().find(|one| one.destination == *path);
            found.map(|one| one.source.clone())
        };
        let below = all[..index]
            .iter()
            .map(oci_spec::runtime::Mount::destination)
            .filter(|above| destination.starts_with(above) && *above != destination)
            .max_by_key(|above| above.components().count());
        let (base, path) = match below {
            None => (rootfs.to_owned(), destination.clone()),
            Some(above) => match (source(above), destination.strip_prefix(above)) {
                (Some(source), Ok(rest)) => (source, Path::new("/").join(rest)),
                _ => continue,
            },
        };
        let directory = !options.is_bind(mount.typ().as_deref())
            || source(destination).is_none_or(|source| source.is_dir());
        let what = || format!("make {} for a mount", destination.display());
        let root = open_path(&base).or_fail(Step::Mount, what)?;
        Rootfs::attached(&root)?.destination(&path, directory)?;
    }
    Ok(())
}

/// The standard streams and whatever else the container is to be passed, by number.
fn streams(io: &Io) -> Result<Vec<OwnedFd>, CreateError> {
    let copy = |number| {
        let what = format!("descriptor {number}");
        sys::inherited_fd(number).map_err(CreateError::system(what))
    };
    match &io.stdio {
        Stdio::Fds {
            stdin,
            stdout,
            stderr,
        } => [stdin, stdout, stderr]
            .into_iter()
            .map(|fd| copy(fd.as_raw_fd()))
            .collect(),
        Stdio::Inherit | Stdio::Terminal | Stdio::Copied => (0..3).map(copy).collect(),
    }
}

/// The list that checkpoint has written, or runc. Without one, nothing is passed.
fn read_descriptors(images: &Path) -> Result<Vec<String>, CriuError> {
    let path = images.join(DESCRIPTORS);
    match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read
            .and_then(|text| Ok(serde_json::from_slice(&text)?))
            .map_err(files("read", &path)),
    }
}

/// Where criu is, there the container's groups are to be restored.
fn groups_of(pid: Pid) -> Result<Vec<CgroupRoot>, CreateError> {
    let path = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&path).map_err(CreateError::system(format!("read {path}")))?;
    Ok(parse_groups(&text))
}

fn parse_groups(text: &str) -> Vec<CgroupRoot> {
    let mut roots = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        roots.extend(controllers.split(',').map(|controller| CgroupRoot {
            ctrl: Some(controller.to_owned()),
            path: path.to_owned(),
        }));
    }
    roots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_told_per_controller() {
        let roots = parse_groups("4:cpu,cpuacct:/a:b\n1:name=systemd:/\n0::/x\n");
        let found: Vec<(&str, &str)> = roots
            .iter()
            .map(|root| (root.ctrl(), root.path.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                ("cpu", "/a:b"),
                ("cpuacct", "/a:b"),
                ("name=systemd", "/"),
                ("", "/x")
            ]
        );
    }
}
