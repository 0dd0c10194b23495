//! Intel RDT: shares of the L3 cache and of memory bandwidth, through the kernel's `resctrl` file system.
//!
//! A class (CLOS) is a directory with the files `schemata`, what its processes may use, and `tasks`, who they are. There
//! are few, four to sixteen, so containers may share one by its name (`closID`): such a one stays when they go, because
//! others may be in it, as with runc. A class of a container's own has the container's id, and goes with it.
//!
//! Sources: runtime-spec 1.3, config-linux.md, "IntelRdt"; the kernel's Documentation/filesystems/resctrl.rst.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use oci_spec::runtime::LinuxIntelRdt;
use serde::{Deserialize, Serialize};

mod stats;

pub use stats::{Bandwidth, L3CacheInfo, MemBwInfo, Occupancy, RdtStats};

/// Something on a class failed.
#[derive(Debug, thiserror::Error)]
pub enum RdtError {
    /// The kernel or the processor lacks it, or nobody has mounted it.
    #[error(
        "linux.intelRdt needs the resctrl file system, and none is mounted at {USUAL} or elsewhere"
    )]
    NotMounted,
    /// What is mounted cannot be told.
    #[error("read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The processor can do less, or the kernel was told to use less.
    #[error("linux.intelRdt.{field} needs {feature}, which is not enabled here")]
    Lacks {
        /// The field.
        field: &'static str,
        /// The feature.
        feature: &'static str,
    },
    /// The name of a class is none.
    #[error("linux.intelRdt.closID {name:?} cannot be the name of a class")]
    InvalidName {
        /// The name.
        name: String,
    },
    /// A class without limits is one that somebody else has made.
    #[error("class {name:?} does not exist, and linux.intelRdt has no limits to make it with")]
    Missing {
        /// Its name.
        name: String,
    },
    /// A class that others use is not changed.
    #[error("class {name:?} exists with other limits: {line:?} is not among them")]
    Differs {
        /// Its name.
        name: String,
        /// The line that was asked for.
        line: String,
    },
    /// The kernel has refused something.
    #[error("{what} {path}{}", told(status), path = path.display())]
    Refused {
        /// What was tried.
        what: String,
        /// On what.
        path: PathBuf,
        /// The kernel's own words.
        status: String,
        /// Why not.
        source: io::Error,
    },
}

fn told(status: &str) -> String {
    match status {
        "" | "ok" => String::new(),
        status => format!(" ({status})"),
    }
}

/// Where it is mounted, as a rule.
const USUAL: &str = "/sys/fs/resctrl";

/// What the kernel has in its root, and which are no classes therefore.
const RESERVED: [&str; 5] = [".", "..", "info", "mon_groups", "mon_data"];

/// A container's class, as it is written down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Class {
    /// Where resctrl is mounted.
    root: PathBuf,
    /// Its directory.
    directory: PathBuf,
    /// The group in it that counts what this container uses.
    monitor: Option<PathBuf>,
    /// Whether it goes with the container.
    own: bool,
}

/// The mounted file system.
#[derive(Clone, Debug)]
pub(crate) struct Resctrl {
    root: PathBuf,
}

impl Resctrl {
    /// Looks at the usual place first, and only if it is not there through the list of mounts.
    pub fn find() -> Result<Self, RdtError> {
        if let Some(found) = Self::at(Path::new(USUAL)) {
            return Ok(found);
        }
        let path = Path::new("/proc/self/mountinfo");
        let text = fs::read(path).map_err(|source| RdtError::Read {
            path: path.to_owned(),
            source,
        })?;
        let point = crate::cgroup::mount_point(&String::from_utf8_lossy(&text), "resctrl");
        point
            .and_then(|point| Self::at(&point))
            .ok_or(RdtError::NotMounted)
    }

    /// The one that is mounted there, if there is one.
    pub fn at(root: &Path) -> Option<Self> {
        let root = root.to_owned();
        root.join("schemata").exists().then_some(Self { root })
    }

    /// Finds out which class it is to be, and whether it can be had. Nothing is made yet, so that it can be written down
    /// before.
    pub fn plan(&self, id: &str, rdt: &LinuxIntelRdt) -> Result<Class, RdtError> {
        let (name, own) = name(id, rdt)?;
        let directory = self.root.join(name.trim_start_matches('/'));
        let lines = lines(rdt);
        let has = |feature: &str| self.root.join("info").join(feature).exists();
        let needed = [
            (rdt.l3_cache_schema(), "l3CacheSchema", ["L3", "L3CODE"]),
            (rdt.mem_bw_schema(), "memBwSchema", ["MB", "MB"]),
        ];
        for (given, field, features) in needed {
            if given.as_deref().is_some_and(|text| !text.is_empty())
                && !features.into_iter().any(has)
            {
                let feature = match field {
                    "memBwSchema" => "memory bandwidth allocation (MBA)",
                    _ => "cache allocation (CAT)",
                };
                return Err(RdtError::Lacks { field, feature });
            }
        }
        let monitored = *rdt.enable_monitoring() == Some(true);
        if monitored && !has("L3_MON") {
            return Err(RdtError::Lacks {
                field: "enableMonitoring",
                feature: "cache and bandwidth monitoring (CMT, MBM)",
            });
        }
        if !own {
            check_shared(&directory, name, &lines)?;
        }
        Ok(Class {
            root: self.root.clone(),
            monitor: monitored.then(|| directory.join("mon_groups").join(id)),
            directory,
            own,
        })
    }
}

/// A class with a name of its own that exists is taken as it is, if that is what is wanted.
fn check_shared(directory: &Path, name: &str, lines: &[String]) -> Result<(), RdtError> {
    let path = directory.join("schemata");
    let there = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !directory.exists() => {
            return match lines {
                [] => Err(RdtError::Missing { name: name.into() }),
                _ => Ok(()),
            };
        }
        read => read.map_err(|source| RdtError::Read { path, source })?,
    };
    let there: Vec<_> = there.lines().map(parse).collect();
    let differs = lines.iter().find(|line| {
        let (resource, wanted) = parse(line);
        !there.iter().any(|(other, domains)| {
            *other == resource
                && wanted
                    .iter()
                    .all(|(key, value)| domains.get(key) == Some(value))
        })
    });
    match differs {
        Some(line) => Err(RdtError::Differs {
            name: name.into(),
            line: line.clone(),
        }),
        None => Ok(()),
    }
}

/// The name of the class, and whether it is the container's own.
fn name<'a>(id: &'a str, rdt: &'a LinuxIntelRdt) -> Result<(&'a str, bool), RdtError> {
    let given = rdt.clos_id().as_deref().filter(|name| !name.is_empty());
    let (name, own) = given.map_or((id, true), |name| (name, false));
    // The default class is the root itself.
    if name == "/" && !own {
        return Ok((name, own));
    }
    if RESERVED.contains(&name) || name.contains(['/', '\n', '\0']) {
        return Err(RdtError::InvalidName { name: name.into() });
    }
    Ok((name, own))
}

/// What can be told without a look at the machine.
pub(crate) fn check(rdt: &LinuxIntelRdt) -> Result<(), RdtError> {
    name("", rdt).map(drop)
}

/// What is to be in `schemata`. Of a resource that is named twice, in fields that override one another, the last counts:
/// the kernel would refuse both.
fn lines(rdt: &LinuxIntelRdt) -> Vec<String> {
    let split = |text: &Option<String>| -> Vec<String> {
        let text = text.as_deref().unwrap_or_default();
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        lines.map(str::to_owned).collect()
    };
    let mut all: Vec<String> = Vec::new();
    let schemata = rdt.schemata().clone().unwrap_or_default();
    for later in [
        split(rdt.l3_cache_schema()),
        split(rdt.mem_bw_schema()),
        schemata,
    ] {
        all.retain(|line| !later.iter().any(|other| resource(other) == resource(line)));
        all.extend(later);
    }
    all
}

fn resource(line: &str) -> &str {
    line.split(':').next().unwrap_or_default().trim()
}

/// A line of `schemata`: the resource, and its share by the cache's number. Masks are written with or without leading
/// zeros.
fn parse(line: &str) -> (String, BTreeMap<String, String>) {
    let (_, domains) = line.split_once(':').unwrap_or_default();
    let domains = domains.split(';').filter_map(|domain| {
        let (key, value) = domain.split_once('=')?;
        let value = value.trim().trim_start_matches('0').to_ascii_lowercase();
        Some((key.trim().to_owned(), value))
    });
    (resource(line).to_owned(), domains.collect())
}

impl Class {
    /// Makes what is missing of it, and sets its limits. Gives the directories that were made, the last one first: they are
    /// to be removed if the container does not come to be.
    pub fn make(&self, rdt: &LinuxIntelRdt, made: &mut Vec<PathBuf>) -> Result<(), RdtError> {
        let exists = self.make_directory(&self.directory, made)?;
        let lines = lines(rdt);
        if !lines.is_empty() && (self.own || !exists) {
            self.limit(&lines)?;
        }
        if let Some(monitor) = &self.monitor {
            self.make_directory(monitor, made)?;
        }
        Ok(())
    }

    /// Whether it was there.
    fn make_directory(&self, path: &Path, made: &mut Vec<PathBuf>) -> Result<bool, RdtError> {
        match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(true),
            done => {
                done.map_err(|source| self.refused("make", path, source))?;
                made.insert(0, path.to_owned());
                Ok(false)
            }
        }
    }

    fn limit(&self, lines: &[String]) -> Result<(), RdtError> {
        let text = lines.join("\n") + "\n";
        self.write(&self.directory.join("schemata"), &text)
    }

    /// Sets other limits; the fields that are not given stay. A class of the container's own is made if it is missing: whoever
    /// was to make it may have come to its end before.
    pub fn change(&self, rdt: &LinuxIntelRdt) -> Result<(), RdtError> {
        if self.own {
            self.make(rdt, &mut Vec::new())
        } else {
            self.limit(&lines(rdt))
        }
    }

    /// Puts a thread in; those that it makes from then on are in it, too.
    pub fn add(&self, thread: Pid) -> Result<(), RdtError> {
        for directory in [&self.directory].into_iter().chain(&self.monitor) {
            self.write(&directory.join("tasks"), &thread.to_string())?;
        }
        Ok(())
    }

    /// Puts a process in with all its threads. What ends meanwhile is no failure.
    pub fn add_process(&self, pid: Pid) -> Result<(), RdtError> {
        let path = PathBuf::from(format!("/proc/{pid}/task"));
        let threads = fs::read_dir(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let threads = match threads {
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(libc::ESRCH) =>
            {
                return Ok(());
            }
            read => read.map_err(|source| RdtError::Read { path, source })?,
        };
        // The kernel gives nothing but numbers there.
        let numbers = threads
            .iter()
            .filter_map(|thread| thread.file_name().to_str()?.parse().ok());
        for thread in numbers.map(Pid::from_raw) {
            match self.add(thread) {
                Err(RdtError::Refused { source, .. })
                    if source.raw_os_error() == Some(libc::ESRCH) => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// Removes what belongs to the container alone.
    pub fn remove(&self) -> Result<(), RdtError> {
        let own = self.own.then_some(&self.directory);
        let mut done = Ok(());
        for directory in self.monitor.iter().chain(own) {
            let removed = remove(directory);
            done = done.and(removed.map_err(|source| self.refused("remove", directory, source)));
        }
        done
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), RdtError> {
        let what = format!("write {:?} to", text.trim_end());
        fs::write(path, text).map_err(|source| self.refused(&what, path, source))
    }

    fn refused(&self, what: &str, path: &Path, source: io::Error) -> RdtError {
        let status = fs::read_to_string(self.root.join("info/last_cmd_status"));
        RdtError::Refused {
            what: what.into(),
            path: path.to_owned(),
            status: status.unwrap_or_default().trim().to_owned(),
            source,
        }
    }
}

/// Removes a class or a group; one that is gone is as good. The kernel moves its processes to where they came from.
pub(crate) fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Not with the kernel's, whose files go with the directory. As runc, which removes all there is.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            Ok(knarr_tree::remove(directory)?)
        }
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// The files that the kernel has in its root.
    fn simulated() -> (tempfile::TempDir, Resctrl) {
        let directory = tempfile::tempdir().unwrap();
        for name in ["info/L3", "info/MB", "info/L3_MON", "mon_groups"] {
            fs::create_dir_all(directory.path().join(name)).unwrap();
        }
        for (name, text) in [
            ("schemata", "    L3:0=fff;1=fff\n    MB:0=100;1=100\n"),
            ("tasks", "1\n"),
            ("info/last_cmd_status", "ok\n"),
        ] {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let resctrl = Resctrl::at(directory.path()).expect("it looks like one");
        (directory, resctrl)
    }

    fn rdt(value: Value) -> LinuxIntelRdt {
        serde_json::from_value(value).unwrap()
    }

    fn make(resctrl: &Resctrl, id: &str, value: Value) -> Result<(Class, Vec<PathBuf>), RdtError> {
        let (rdt, mut made) = (rdt(value), Vec::new());
        let class = resctrl.plan(id, &rdt)?;
        class.make(&rdt, &mut made)?;
        Ok((class, made))
    }

    fn read(directory: &tempfile::TempDir, name: &str) -> String {
        fs::read_to_string(directory.path().join(name)).unwrap_or_default()
    }

    #[test]
    fn a_class_of_its_own_has_the_limits_and_goes_with_the_container() {
        let (directory, resctrl) = simulated();
        let limits = json!({ "l3CacheSchema": "L3:0=f;1=f0", "memBwSchema": "MB:0=20;1=70" });
        let (class, made) = make(&resctrl, "one", limits).unwrap();
        assert_eq!(made, [directory.path().join("one")]);
        assert_eq!(
            read(&directory, "one/schemata"),
            "L3:0=f;1=f0\nMB:0=20;1=70\n"
        );
        class.add(Pid::from_raw(42)).unwrap();
        assert_eq!(read(&directory, "one/tasks"), "42");
        class
            .change(&rdt(json!({ "memBwSchema": "MB:0=30" })))
            .unwrap();
        assert_eq!(read(&directory, "one/schemata"), "MB:0=30\n");
        class.remove().unwrap();
        assert!(!directory.path().join("one").exists());
        class.remove().unwrap();
    }

    #[test]
    fn a_class_of_that_name_is_shared_and_stays() {
        let (directory, resctrl) = simulated();
        let limits = json!({ "closID": "gold", "l3CacheSchema": "L3:0=0f;1=F0" });
        let (first, made) = make(&resctrl, "one", limits.clone()).unwrap();
        assert_eq!(made.len(), 1);
        // As the kernel shows it.
        let shown = "    L3:0=f;1=f0\n    MB:0=100;1=100\n";
        fs::write(directory.path().join("gold/schemata"), shown).unwrap();
        let (second, made) = make(&resctrl, "two", limits).unwrap();
        assert!(made.is_empty());
        assert_eq!(
            read(&directory, "gold/schemata"),
            shown,
            "it is not written again"
        );
        for class in [first, second] {
            class.remove().unwrap();
        }
        assert!(directory.path().join("gold").exists());
        let (_, made) = make(&resctrl, "three", json!({ "closID": "gold" })).unwrap();
        assert!(made.is_empty());
        let other = json!({ "closID": "gold", "schemata": ["L3:0=f;1=ff"] });
        let error = make(&resctrl, "four", other).unwrap_err().to_string();
        assert!(error.contains("L3:0=f;1=ff"), "{error}");
        let error = make(&resctrl, "five", json!({ "closID": "silver" })).unwrap_err();
        assert!(matches!(error, RdtError::Missing { .. }), "{error}");
        assert!(!directory.path().join("silver").exists());
    }

    #[test]
    fn a_container_is_counted_in_a_group_of_its_own_in_any_class() {
        let (directory, resctrl) = simulated();
        let wanted = json!({ "closID": "/", "enableMonitoring": true });
        let (class, made) = make(&resctrl, "one", wanted).unwrap();
        assert_eq!(made, [directory.path().join("mon_groups/one")]);
        class.add(Pid::from_raw(42)).unwrap();
        assert_eq!(read(&directory, "tasks"), "42");
        assert_eq!(read(&directory, "mon_groups/one/tasks"), "42");
        class.remove().unwrap();
        assert!(!directory.path().join("mon_groups/one").exists());
        assert!(directory.path().join("schemata").exists());
    }

    #[test]
    fn fields_that_override_others_do_so() {
        let both = rdt(json!({
            "l3CacheSchema": "L3DATA:0=f\nL3CODE:0=f\nMB:0=10",
            "memBwSchema": "MB:0=20",
            "schemata": ["L3CODE:0=1", "L2:0=ff"],
        }));
        assert_eq!(
            lines(&both),
            ["L3DATA:0=f", "MB:0=20", "L3CODE:0=1", "L2:0=ff"]
        );
        assert!(lines(&rdt(json!({ "closID": "x" }))).is_empty());
    }

    #[test]
    fn what_the_machine_lacks_and_what_is_no_name_are_refused() {
        let (directory, resctrl) = simulated();
        for name in [".", "..", "info", "mon_groups", "a/b", "../up", "a\nb"] {
            let error = make(
                &resctrl,
                "one",
                json!({ "closID": name, "schemata": ["L3:0=f"] }),
            );
            let error = error.unwrap_err();
            assert!(
                matches!(error, RdtError::InvalidName { .. }),
                "{name:?}: {error}"
            );
        }
        assert!(make(&resctrl, "info", json!({})).is_err());
        for (feature, field, value) in [
            ("L3", "l3CacheSchema", json!("L3:0=f")),
            ("MB", "memBwSchema", json!("MB:0=20")),
            ("L3_MON", "enableMonitoring", json!(true)),
        ] {
            fs::remove_dir(directory.path().join("info").join(feature)).unwrap();
            let error = make(&resctrl, "one", json!({ field: value }))
                .unwrap_err()
                .to_string();
            assert!(error.contains(field), "{error}");
        }
        assert!(!directory.path().join("one").exists());
        assert!(Resctrl::at(&directory.path().join("info")).is_none());
    }

    #[test]
    fn a_refusal_is_told_in_the_words_of_the_kernel() {
        let (directory, resctrl) = simulated();
        let status = directory.path().join("info/last_cmd_status");
        fs::write(status, "Mask ff0f has non-consecutive 1-bits\n").unwrap();
        // What cannot be written, whoever asks.
        fs::create_dir_all(directory.path().join("one/schemata")).unwrap();
        let error = make(&resctrl, "one", json!({ "schemata": ["L3:0=ff0f"] })).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("L3:0=ff0f") && error.contains("non-consecutive"),
            "{error}"
        );
    }
}
