//! Mounts of type `cgroup`: what a container sees of its control groups.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::Rootfs;
use super::mounts::{MountContext, apply_attributes, new_filesystem, open_tree};
use crate::error::{Failure, OrFail, Step};
use crate::mount::Options;
use crate::sys::{self, MountAttr};

impl Rootfs {
    /// v2: the container's group as a cgroup2 file system. v1: a tmpfs with a directory per hierarchy, which shows the
    /// container's group only; hierarchies in which it has no group of its own stay out.
    pub(super) fn mount_cgroup(
        &self,
        destination: &Path,
        options: &Options,
        context: &MountContext<'_>,
    ) -> Result<(), Failure> {
        let target = self.destination(destination, true)?;
        if let Some(directory) = context.cgroup.directories.get("") {
            // In a new cgroup namespace a new mount shows the group as its root; else the group is bound.
            let fresh = if context.cgroup_namespace {
                new_filesystem(
                    c"cgroup2",
                    Some(Path::new("cgroup")),
                    &without_data(options),
                    None,
                )
            } else {
                open_tree(directory, false)
            };
            let tree = fresh.or_else(|_| open_tree(directory, false))?;
            sys::move_mount(tree.as_fd(), target.as_fd()).or_fail(Step::Mount, || "attach it")?;
            return apply_attributes(tree.as_fd(), options);
        }
        let mut words = vec!["mode=755".to_owned()];
        words.extend(["nosuid", "nodev", "noexec"].map(str::to_owned));
        let plain =
            Options::parse(&words).map_err(|error| Failure::new(Step::Mount, error.to_string()))?;
        let tmpfs = new_filesystem(c"tmpfs", Some(Path::new("cgroup")), &plain, None)?;
        sys::move_mount(tmpfs.as_fd(), target.as_fd()).or_fail(Step::Mount, || "attach it")?;
        for (directory, controllers) in by_directory(&context.cgroup.directories) {
            let name = controllers.join(",");
            let what = || format!("cgroup {name}");
            let mode = nix::sys::stat::Mode::from_bits_truncate(0o755);
            nix::sys::stat::mkdirat(&tmpfs, name.as_str(), mode).or_fail(Step::Mount, what)?;
            let tree = open_tree(directory, false)?;
            let attr = MountAttr {
                set: options.attr.set | 0xe,
                clear: options.attr.clear,
                ..MountAttr::default()
            };
            sys::mount_setattr(tree.as_fd(), c"", false, &attr).or_fail(Step::Mount, what)?;
            let place = nix::fcntl::openat(
                &tmpfs,
                name.as_str(),
                nix::fcntl::OFlag::O_PATH
                    | nix::fcntl::OFlag::O_NOFOLLOW
                    | nix::fcntl::OFlag::O_CLOEXEC,
                nix::sys::stat::Mode::empty(),
            );
            let place = place.or_fail(Step::Mount, what)?;
            sys::move_mount(tree.as_fd(), place.as_fd()).or_fail(Step::Mount, what)?;
            if controllers.len() > 1 {
                for controller in controllers {
                    nix::unistd::symlinkat(name.as_str(), &tmpfs, controller)
                        .or_fail(Step::Mount, what)?;
                }
            }
        }
        apply_attributes(tmpfs.as_fd(), options)
    }
}

fn without_data(options: &Options) -> Options {
    Options {
        data: Vec::new(),
        ..options.clone()
    }
}

/// Several controllers can share a hierarchy: one directory, under all their names. A named one goes by its name.
pub(crate) fn by_directory(directories: &BTreeMap<String, PathBuf>) -> BTreeMap<&Path, Vec<&str>> {
    let mut shared: BTreeMap<&Path, Vec<&str>> = BTreeMap::new();
    for (controller, directory) in directories {
        let name = controller.strip_prefix("name=").unwrap_or(controller);
        shared.entry(directory).or_default().push(name);
    }
    shared
}
