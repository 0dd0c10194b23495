//! What is known of a container between two commands: `<root>/<id>/{state.json, config.json, start.sock}`.
//!
//! * `state.json` is small, and replaced as a whole, so that a reader never sees a half of it.
//! * `config.json` is the configuration it was created with; exec, start and delete want parts of it.
//! * `start.sock` is where its process waits for start. It exists exactly as long as the container is created and not started.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::cgroup::GroupRecord;
use crate::error::StateError;
use crate::id::ContainerId;

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being made.
    Creating,
    /// Made, and waiting for start.
    Created,
    /// The user's program runs.
    Running,
    /// It runs, but its cgroup is frozen.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// The state of a container as the OCI runtime specification words it, with what runc adds.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Version of the runtime specification.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// Its first process in our PID namespace; zero once it is stopped.
    pub pid: i32,
    /// Where it is in its life.
    pub status: Status,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its root file system.
    pub rootfs: PathBuf,
    /// When it was made, RFC 3339.
    pub created: String,
    /// Who made it: always empty, as with runc for root.
    pub owner: String,
    /// The configuration's annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What `state.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub oci_version: String,
    pub id: String,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    pub created: String,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Zero while it is being made.
    pub pid: i32,
    /// In clock ticks since boot: with the pid it names a process for good.
    pub start_time: u64,
    pub cgroup: GroupRecord,
    /// The scope of systemd's that the group belongs to.
    #[serde(default)]
    pub scope: Option<crate::cgroup::systemd::Scope>,
    /// Its class for caches and memory bandwidth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rdt: Option<crate::rdt::Class>,
    /// Whether a PID namespace was made for it, so that killing its first process kills all.
    pub own_pid_namespace: bool,
    /// Whether the configuration names no process: then it can be created, but not started.
    #[serde(default)]
    pub no_process: bool,
    /// Whether it shares the host's mount namespace, so that its mounts have to be taken away.
    #[serde(default)]
    pub mounted_on_host: bool,
    /// Whether there are poststart hooks, so that start need not read the configuration otherwise.
    #[serde(default)]
    pub poststart: bool,
    /// Whether there are poststop hooks.
    #[serde(default)]
    pub poststop: bool,
}

/// The version of the runtime specification that we follow.
pub const OCI_VERSION: &str = "1.3.0";

/// A state that is not published yet.
const SCRATCH: &str = ".state.json";

/// The directory of one container.
#[derive(Clone, Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
}

impl StateDir {
    pub fn new(root: &Path, id: &ContainerId) -> Self {
        Self {
            path: root.join(id.as_str()),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn socket(&self) -> PathBuf {
        self.path.join("start.sock")
    }

    /// Makes it; `AlreadyExists` if the id is taken.
    pub fn create(&self, root: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let make = |recursive: bool, path: &Path| {
            fs::DirBuilder::new()
                .recursive(recursive)
                .mode(0o711)
                .create(path)
        };
        match make(false, &self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make(true, root)?;
                make(false, &self.path)
            }
            done => done,
        }
    }

    pub fn remove(&self) -> io::Result<()> {
        // The four names that we make: cheaper than reading the directory.
        for name in ["start.sock", "config.json", "state.json", SCRATCH] {
            match fs::remove_file(self.path.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                Ok(knarr_tree::remove(&self.path)?)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    pub fn write_record(&self, record: &Record) -> io::Result<()> {
        self.prepare_record(record)?;
        self.publish_record()
    }

    /// Writes it where nobody looks, to be published later.
    pub fn prepare_record(&self, record: &Record) -> io::Result<()> {
        write_private(&self.path.join(SCRATCH), &serde_json::to_vec(record)?)
    }

    /// Puts the one that was prepared last in place of the one before.
    pub fn publish_record(&self) -> io::Result<()> {
        fs::rename(self.path.join(SCRATCH), self.path.join("state.json"))
    }

    pub fn write_config(&self, spec: &Spec) -> io::Result<()> {
        write_private(&self.path.join("config.json"), &serde_json::to_vec(spec)?)
    }

    /// A new one at once in place of the old one, which others may be reading.
    pub fn replace_config(&self, spec: &Spec) -> io::Result<()> {
        let new = self.path.join("config.json.new");
        write_private(&new, &serde_json::to_vec(spec)?)?;
        fs::rename(new, self.path.join("config.json"))
    }

    pub fn read_record(&self, id: &ContainerId) -> Result<Record, StateError> {
        self.read("state.json", id)
    }

    pub fn read_config(&self, id: &ContainerId) -> Result<Spec, StateError> {
        self.read("config.json", id)
    }

    fn read<T: serde::de::DeserializeOwned>(
        &self,
        name: &str,
        id: &ContainerId,
    ) -> Result<T, StateError> {
        let path = self.path.join(name);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StateError::NotFound { id: id.to_string() });
            }
            Err(source) => return Err(StateError::Read { path, source }),
        };
        serde_json::from_slice(&bytes).map_err(|source| StateError::Parse { path, source })
    }
}

/// No fsync: the file describes processes, which a power loss ends too.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)
}

/// What `/proc/<pid>/stat` says about a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcStat {
    /// `R`, `S`, `Z`…
    pub state: u8,
    /// In clock ticks since boot.
    pub start_time: u64,
}

impl ProcStat {
    /// `None` if there is no such process.
    pub fn read(pid: i32) -> io::Result<Option<Self>> {
        use std::io::Read;
        // It is one line of well under this; the kernel makes it anew for each read.
        let mut buffer = [0; 2048];
        let read =
            fs::File::open(format!("/proc/{pid}/stat")).and_then(|mut file| file.read(&mut buffer));
        match read {
            Ok(length) => Self::parse(&buffer[..length])
                .map(Some)
                .ok_or_else(|| io::ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The command's name may hold anything, also parentheses: fields count from the last one (proc_pid_stat(5)).
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(bytes.get(end + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        // The state is field 3, the start time field 22.
        let start_time = fields.nth(18)?.parse().ok()?;
        Some(Self { state, start_time })
    }
}

/// The time now as RFC 3339 in UTC with nanoseconds.
pub fn now() -> String {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    rfc3339(since.as_secs(), since.subsec_nanos())
}

/// Civil date from days, by the era arithmetic of the proleptic Gregorian calendar.
fn rfc3339(seconds: u64, nanos: u32) -> String {
    let (days, rest) = (seconds / 86400, seconds % 86400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_parentheses_does_not_confuse_the_start_time() {
        let line = b"42 (a) R (b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20 21";
        assert_eq!(
            ProcStat::parse(line),
            Some(ProcStat {
                state: b'S',
                start_time: 777
            })
        );
        assert_eq!(ProcStat::parse(b""), None);
    }

    proptest::proptest! {
        #[test]
        fn no_text_of_a_process_makes_the_parser_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            ProcStat::parse(&bytes);
        }
    }

    #[test]
    fn dates_are_right_around_leap_days() {
        assert_eq!(rfc3339(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339(951_782_400, 5), "2000-02-29T00:00:00.000000005Z");
        assert_eq!(rfc3339(4_107_542_399, 0), "2100-02-28T23:59:59.000000000Z");
        assert_eq!(rfc3339(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z");
    }
}
