//! Which hierarchies this host has mounted, and where.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::CgroupError;

/// The cgroup hierarchies of this host, found once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// v1: mount point by controller (several can share one; named hierarchies are `name=…`).
    v1: BTreeMap<String, PathBuf>,
    /// v2, which on a hybrid host is there beside v1.
    unified: Option<PathBuf>,
}

/// statfs(2): the type of a cgroup v2 file system.
const CGROUP2_MAGIC: i64 = 0x6367_7270;

impl Layout {
    /// Looks at `/sys/fs/cgroup`; only if that is not pure v2, reads the list of mounts.
    ///
    /// # Errors
    ///
    /// If neither can be read.
    pub fn detect() -> Result<Self, CgroupError> {
        let usual = Path::new("/sys/fs/cgroup");
        let magic =
            fs::File::open(usual).and_then(|root| crate::sys::filesystem_magic(root.as_fd()));
        if magic.is_ok_and(|magic| magic == CGROUP2_MAGIC) {
            return Ok(Self {
                v1: BTreeMap::new(),
                unified: Some(usual.to_owned()),
            });
        }
        let path = Path::new("/proc/self/mountinfo");
        // The kernel makes the text anew for each read: one large one instead of many that grow.
        let mut text = Vec::with_capacity(32 << 10);
        fs::File::open(path)
            .and_then(|mut file| file.read_to_end(&mut text))
            .map_err(|source| CgroupError::Read {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self::parse(&String::from_utf8_lossy(&text)))
    }

    /// From the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
    pub(super) fn parse(mountinfo: &str) -> Self {
        let mut layout = Self::default();
        for line in mountinfo.lines() {
            let Some((mount, filesystem)) = line.split_once(" - ") else {
                continue;
            };
            let Some(point) = mount.split(' ').nth(4) else {
                continue;
            };
            let mut fields = filesystem.split(' ');
            match (fields.next(), fields.nth(1)) {
                (Some("cgroup2"), _) => {
                    layout.unified.get_or_insert_with(|| unescape(point));
                }
                (Some("cgroup"), Some(options)) => {
                    // Controllers stand among the hierarchy's options (kernel/cgroup/cgroup-v1.c, cgroup1_show_options).
                    let ours = |option: &&str| {
                        !option.starts_with("release_agent=")
                            && !matches!(
                                *option,
                                "" | "rw"
                                    | "ro"
                                    | "xattr"
                                    | "clone_children"
                                    | "noprefix"
                                    | "cpuset_v2_mode"
                                    | "favordynmods"
                            )
                    };
                    for controller in options.split(',').filter(ours) {
                        layout
                            .v1
                            .entry(controller.to_owned())
                            .or_insert_with(|| unescape(point));
                    }
                }
                _ => {}
            }
        }
        layout
    }

    /// Whether all controllers are on v2.
    pub fn is_unified(&self) -> bool {
        self.v1.is_empty() && self.unified.is_some()
    }

    /// Where v2 is mounted, also on a hybrid host.
    pub fn unified_root(&self) -> Option<&Path> {
        self.unified.as_deref()
    }

    /// Where a v1 controller is mounted.
    pub fn v1_root(&self, controller: &str) -> Option<&Path> {
        self.v1.get(controller).map(PathBuf::as_path)
    }

    /// All that count: on pure v2 the one hierarchy under the empty name, else the v1 controllers.
    pub fn hierarchies(&self) -> impl Iterator<Item = (&str, &Path)> {
        let unified = self
            .unified
            .as_deref()
            .filter(|_| self.is_unified())
            .map(|root| ("", root));
        unified.into_iter().chain(
            self.v1
                .iter()
                .map(|(name, root)| (name.as_str(), root.as_path())),
        )
    }
}

/// Where a file system of this type is mounted first, from the same text.
pub(crate) fn mount_point(mountinfo: &str, kind: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        (filesystem.split(' ').next() == Some(kind)).then(|| unescape(point))
    })
}

/// Where file systems of these types are mounted whole, from the same text.
pub(crate) fn mount_points(mountinfo: &str, kinds: &[&str]) -> Vec<PathBuf> {
    let lines = mountinfo.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let wanted = kinds.contains(&filesystem.split(' ').next()?) && root == "/";
        wanted.then(|| unescape(point))
    });
    lines.collect()
}

/// The kernel writes space, tab, newline and backslash in octal.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_mount_point_of_any_name_is_found_again(name in "/[a-z \\\\\t]{1,20}") {
            let escaped = name.replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011");
            let layout = Layout::parse(&format!("1 2 0:3 / {escaped} rw - cgroup cgroup rw,pids"));
            proptest::prop_assert_eq!(layout.v1_root("pids"), Some(Path::new(&name)));
        }

        #[test]
        fn no_list_of_mounts_makes_the_parser_panic(text in ".{0,200}") {
            Layout::parse(&text);
        }
    }

    #[test]
    fn hybrid_hosts_count_as_v1() {
        let layout = Layout::parse(
            "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
             32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
             40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
             41 31 0:38 / /sys/fs/cgroup/with\\040space rw - cgroup2 cgroup2 rw\n",
        );
        assert!(!layout.is_unified());
        assert_eq!(
            layout.v1_root("cpuacct"),
            Some(Path::new("/sys/fs/cgroup/cpu,cpuacct"))
        );
        assert_eq!(
            layout.v1_root("name=systemd"),
            Some(Path::new("/sys/fs/cgroup/systemd"))
        );
        assert_eq!(
            layout.unified_root(),
            Some(Path::new("/sys/fs/cgroup/with space"))
        );
        assert_eq!(layout.hierarchies().count(), 3);
    }

    #[test]
    fn a_file_system_is_found_by_its_type() {
        let text = "31 23 0:28 / /sys/fs rw - tmpfs resctrl rw\n\
                    32 31 0:29 / /some\\040where rw shared:9 - resctrl resctrl rw\n";
        let found = mount_point(text, "resctrl");
        assert_eq!(found.as_deref(), Some(Path::new("/some where")));
        assert_eq!(mount_point(text, "nosuch"), None);
    }
}
