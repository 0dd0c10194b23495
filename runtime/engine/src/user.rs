//! Who a container runs as: numbers as they are, names from the image's `/etc/passwd` and `/etc/group`.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::types::SecurityContext;

/// The largest file of users or groups that is read, in bytes: it comes from the image.
const MAX_FILE: u64 = 4 << 20;

/// The user and groups of a container's first process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// Other groups, sorted.
    pub groups: Vec<u32>,
    /// The home directory.
    pub home: String,
}

/// Why there is no such user.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The image has no user of this name.
    #[error("unable to find user {name}: no matching entries in passwd file")]
    NoUser {
        /// The name.
        name: String,
    },
    /// The image has no group of this name.
    #[error("unable to find group {name}: no matching entries in group file")]
    NoGroup {
        /// The name.
        name: String,
    },
    /// A number that is no id.
    #[error("user or group id {id} is out of range")]
    Range {
        /// The number.
        id: i64,
    },
    /// A file of the image could not be read.
    #[error("read {path} of the image", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// Opens a path inside a root without ever leaving it, whatever links the image holds.
pub fn open_inside(root: &Path, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let root = rustix::fs::open(
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let relative = path.trim_start_matches('/');
    let relative = if relative.is_empty() { "." } else { relative };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(
        root,
        relative,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )?)
}

fn read_inside(root: &Path, path: &str) -> Result<String, UserError> {
    let failed = |source: io::Error| UserError::Read {
        path: path.into(),
        source,
    };
    // O_NONBLOCK: a fifo in the file's place must not stop us.
    let fd = match open_inside(root, path, OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(fd) => fd,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(failed(error)),
    };
    let file = File::from(fd);
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(
            io::ErrorKind::InvalidData,
            "not a regular file",
        )));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd(text: &str) -> impl Iterator<Item = Passwd<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or("/");
        Some(Passwd {
            name,
            uid,
            gid,
            home,
        })
    })
}

/// Name, id and members of each group.
fn groups(text: &str) -> impl Iterator<Item = (&str, u32, Vec<&str>)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        let members = fields
            .next()
            .unwrap_or_default()
            .split(',')
            .filter(|member| !member.is_empty())
            .collect();
        Some((name, gid, members))
    })
}

fn id(number: i64) -> Result<u32, UserError> {
    u32::try_from(number)
        .ok()
        .filter(|id| *id <= i32::MAX as u32)
        .ok_or(UserError::Range { id: number })
}

/// Who the container runs as: the pod's numbers over the image's `User`.
///
/// # Errors
///
/// If a name is not in the image's files.
pub fn resolve(
    root: &Path,
    image_user: &str,
    security: &SecurityContext,
) -> Result<Identity, UserError> {
    let passwd_text = read_inside(root, "/etc/passwd")?;
    let group_text = read_inside(root, "/etc/group")?;
    let (user, group) = match image_user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (image_user, None),
    };
    let from_image = security.run_as_user.is_none();
    let entry = match security.run_as_user {
        Some(number) => {
            let uid = id(number)?;
            (uid, passwd(&passwd_text).find(|entry| entry.uid == uid))
        }
        None if user.is_empty() => (0, passwd(&passwd_text).find(|entry| entry.uid == 0)),
        None => match user.parse::<i64>() {
            Ok(number) => {
                let uid = id(number)?;
                (uid, passwd(&passwd_text).find(|entry| entry.uid == uid))
            }
            Err(_) => {
                let entry = passwd(&passwd_text)
                    .find(|entry| entry.name == user)
                    .ok_or_else(|| UserError::NoUser {
                        name: user.to_owned(),
                    })?;
                (entry.uid, Some(entry))
            }
        },
    };
    let (uid, entry) = entry;
    let gid = match (
        security.run_as_group,
        group.filter(|group| from_image && !group.is_empty()),
    ) {
        (Some(number), _) => id(number)?,
        (None, Some(group)) => match group.parse::<i64>() {
            Ok(number) => id(number)?,
            Err(_) => groups(&group_text)
                .find(|(name, ..)| *name == group)
                .map(|(_, gid, _)| gid)
                .ok_or_else(|| UserError::NoGroup {
                    name: group.to_owned(),
                })?,
        },
        (None, None) => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut others = Vec::new();
    if let Some(entry) = &entry
        && !security.supplemental_groups_strict
    {
        others.extend(
            groups(&group_text)
                .filter(|(_, _, members)| members.contains(&entry.name))
                .map(|(_, gid, _)| gid),
        );
    }
    for number in &security.supplemental_groups {
        others.push(id(*number)?);
    }
    others.push(gid);
    others.sort_unstable();
    others.dedup();
    let home = entry.as_ref().map_or("/", |entry| entry.home).to_owned();
    Ok(Identity {
        uid,
        gid,
        groups: others,
        home,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(passwd: &str, group: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(dir.path().join("etc/group"), group).unwrap();
        dir
    }

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/srv:/bin/false\nbroken line\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:\nlog:x:7:web,other\n";

    fn identity(uid: u32, gid: u32, groups: &[u32], home: &str) -> Identity {
        Identity {
            uid,
            gid,
            groups: groups.to_vec(),
            home: home.into(),
        }
    }

    #[test]
    fn users_come_from_the_pod_then_the_image() {
        let dir = image(PASSWD, GROUP);
        let none = SecurityContext::default();
        let as_user = |uid, gid| SecurityContext {
            run_as_user: uid,
            run_as_group: gid,
            ..none.clone()
        };
        for (user, security, wanted) in [
            ("", none.clone(), identity(0, 0, &[0], "/root")),
            ("web", none.clone(), identity(101, 102, &[7, 102], "/srv")),
            ("web:log", none.clone(), identity(101, 7, &[7], "/srv")),
            ("55", none.clone(), identity(55, 0, &[0], "/")),
            ("55:66", none.clone(), identity(55, 66, &[66], "/")),
            (
                "web",
                as_user(Some(1000), None),
                identity(1000, 0, &[0], "/"),
            ),
            (
                "web:log",
                as_user(Some(101), None),
                identity(101, 102, &[7, 102], "/srv"),
            ),
            (
                "web",
                as_user(None, Some(9)),
                identity(101, 9, &[7, 9], "/srv"),
            ),
        ] {
            assert_eq!(
                resolve(dir.path(), user, &security).unwrap(),
                wanted,
                "{user} {security:?}"
            );
        }
        let strict = SecurityContext {
            supplemental_groups_strict: true,
            supplemental_groups: vec![5],
            ..none
        };
        assert_eq!(
            resolve(dir.path(), "web", &strict).unwrap().groups,
            [5, 102]
        );
    }

    #[test]
    fn an_unknown_name_and_a_mad_number_are_refused() {
        let dir = image(PASSWD, GROUP);
        let none = SecurityContext::default();
        assert!(matches!(
            resolve(dir.path(), "nobody", &none),
            Err(UserError::NoUser { .. })
        ));
        assert!(matches!(
            resolve(dir.path(), "web:none", &none),
            Err(UserError::NoGroup { .. })
        ));
        assert!(matches!(
            resolve(dir.path(), "4294967295", &none),
            Err(UserError::Range { .. })
        ));
        assert!(matches!(
            resolve(dir.path(), "-1", &none),
            Err(UserError::Range { .. })
        ));
    }

    #[test]
    fn a_link_out_of_the_image_leads_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("root/etc")).unwrap();
        std::fs::write(dir.path().join("passwd"), "host:x:1:1::/:/bin/sh\n").unwrap();
        std::os::unix::fs::symlink("../../passwd", dir.path().join("root/etc/passwd")).unwrap();
        let found = resolve(
            &dir.path().join("root"),
            "host",
            &SecurityContext::default(),
        );
        assert!(matches!(found, Err(UserError::NoUser { .. })), "{found:?}");
    }
}
