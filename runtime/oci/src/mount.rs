//! The options of one mount, from the words of the specification to the kernel's terms. Pure.
//!
//! Source: OCI runtime-spec, config.md, "Linux mount options"; mount_setattr(2).

use std::ffi::CString;

use crate::sys::MountAttr;

const RDONLY: u64 = 0x01;
const NOSUID: u64 = 0x02;
const NODEV: u64 = 0x04;
const NOEXEC: u64 = 0x08;
const ATIME: u64 = 0x70;
const RELATIME: u64 = 0x00;
const NOATIME: u64 = 0x10;
const STRICTATIME: u64 = 0x20;
const NODIRATIME: u64 = 0x80;
/// `MOUNT_ATTR_IDMAP`.
pub const IDMAP: u64 = 0x10_0000;
const NOSYMFOLLOW: u64 = 0x20_0000;

/// One mount's options, sorted by how the kernel is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Attributes of this mount.
    pub attr: MountAttr,
    /// Attributes of this mount and all below it.
    pub recursive: MountAttr,
    /// Propagation: the `MS_*` flag, and whether for all below, too; in the order given.
    pub propagation: Vec<(u64, bool)>,
    /// `bind` or `rbind`: whether it is a bind mount, and a recursive one.
    pub bind: Option<bool>,
    /// Only change attributes of what is mounted there already.
    pub remount: bool,
    /// Copy what the rootfs has at the destination into the new tmpfs.
    pub copy_up: bool,
    /// Make the source's symlink at the destination, instead of following it.
    pub copy_symlink: bool,
    /// Whether user ids are mapped, and for all below, too.
    pub idmap: Option<bool>,
    /// Options of the file system: a flag, or a key with its value.
    pub data: Vec<(CString, Option<CString>)>,
}

/// An option that holds a NUL.
#[derive(Debug, thiserror::Error)]
#[error("invalid mount option {0:?}")]
pub struct InvalidOption(String);

impl Options {
    /// Sorts the words; what nobody knows is the file system's.
    ///
    /// # Errors
    ///
    /// For an option that holds a NUL.
    pub fn parse(words: &[String]) -> Result<Self, InvalidOption> {
        let mut options = Self::default();
        for word in words {
            options.add(word)?;
        }
        Ok(options)
    }

    fn add(&mut self, word: &str) -> Result<(), InvalidOption> {
        if let Some((clear, set)) = attribute(word) {
            change(&mut self.attr, clear, set);
            return Ok(());
        }
        if let Some((clear, set)) = word.strip_prefix('r').and_then(attribute) {
            change(&mut self.recursive, clear, set);
            return Ok(());
        }
        match word {
            "defaults" | "" => {}
            "bind" => {
                self.bind.get_or_insert(false);
            }
            "rbind" => self.bind = Some(true),
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "copy-symlink" => self.copy_symlink = true,
            "idmap" => self.idmap = Some(false),
            "ridmap" => self.idmap = Some(true),
            "private" => self.propagation.push((libc::MS_PRIVATE, false)),
            "rprivate" => self.propagation.push((libc::MS_PRIVATE, true)),
            "shared" => self.propagation.push((libc::MS_SHARED, false)),
            "rshared" => self.propagation.push((libc::MS_SHARED, true)),
            "slave" => self.propagation.push((libc::MS_SLAVE, false)),
            "rslave" => self.propagation.push((libc::MS_SLAVE, true)),
            "unbindable" => self.propagation.push((libc::MS_UNBINDABLE, false)),
            "runbindable" => self.propagation.push((libc::MS_UNBINDABLE, true)),
            // The opposites of superblock flags which are off in a new superblock anyway; and what fsconfig does not know.
            "async" | "nomand" | "nolazytime" | "norelatime" | "nostrictatime" | "noiversion"
            | "loud" | "silent" => {}
            _ => {
                let text =
                    |part: &str| CString::new(part).map_err(|_| InvalidOption(word.to_owned()));
                let entry = match word.split_once('=') {
                    Some((key, value)) => (text(key)?, Some(text(value)?)),
                    None => (text(word)?, None),
                };
                self.data.push(entry);
            }
        }
        Ok(())
    }

    /// Whether the mount asks for a bind: by its options, or by its type.
    pub fn is_bind(&self, typ: Option<&str>) -> bool {
        self.bind.is_some() || matches!(typ, Some("bind" | "rbind"))
    }
}

/// A later word overrides an earlier one, as with mount(8).
fn change(attr: &mut MountAttr, clear: u64, set: u64) {
    attr.set = attr.set & !clear | set;
    attr.clear = attr.clear & !set | clear;
}

/// The attributes that a word clears and sets. The kernel wants all of [`ATIME`] cleared to set one of its values.
fn attribute(word: &str) -> Option<(u64, u64)> {
    Some(match word {
        "ro" => (0, RDONLY),
        "rw" => (RDONLY, 0),
        "nosuid" => (0, NOSUID),
        "suid" => (NOSUID, 0),
        "nodev" => (0, NODEV),
        "dev" => (NODEV, 0),
        "noexec" => (0, NOEXEC),
        "exec" => (NOEXEC, 0),
        "nodiratime" => (0, NODIRATIME),
        "diratime" => (NODIRATIME, 0),
        "nosymfollow" => (0, NOSYMFOLLOW),
        "symfollow" => (NOSYMFOLLOW, 0),
        "noatime" => (ATIME, NOATIME),
        "atime" | "relatime" => (ATIME, RELATIME),
        "strictatime" => (ATIME, STRICTATIME),
        _ => return None,
    })
}

/// The word for a rootfs propagation, as a flag with its recursion.
pub fn propagation(word: &str) -> Option<(u64, bool)> {
    let options = Options::parse(&[word.to_owned()]).ok()?;
    options.propagation.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Options {
        Options::parse(
            &words
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>(),
        )
        .unwrap()
    }

    #[test]
    fn a_later_word_overrides_an_earlier_one() {
        assert_eq!(
            parse(&["ro", "rw"]).attr,
            MountAttr {
                clear: RDONLY,
                ..MountAttr::default()
            }
        );
        let both = parse(&["noatime", "strictatime"]).attr;
        assert_eq!((both.set, both.clear), (STRICTATIME, ATIME));
    }

    #[test]
    fn recursive_words_are_kept_apart_and_propagation_is_no_attribute() {
        let options = parse(&["rbind", "rro", "rprivate", "relatime"]);
        assert_eq!(options.bind, Some(true));
        assert_eq!(options.recursive.set, RDONLY);
        assert_eq!(options.propagation, [(libc::MS_PRIVATE, true)]);
        assert!(options.data.is_empty());
    }

    #[test]
    fn unknown_words_belong_to_the_file_system() {
        let options = parse(&["mode=755", "size=64k", "newinstance", "nosuid"]);
        let data: Vec<_> = options
            .data
            .iter()
            .map(|(key, value)| (key.to_str().unwrap(), value.is_some()))
            .collect();
        assert_eq!(
            data,
            [("mode", true), ("size", true), ("newinstance", false)]
        );
    }
}
