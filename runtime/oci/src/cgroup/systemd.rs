//! Control groups that systemd makes: scopes, their names, and limits as their properties.
//!
//! Only what is to be asked for is decided here. Who can talk to systemd implements [`Systemd`], so that a program which
//! never does carries no D-Bus.

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use super::v2;

mod property;

pub use property::Property;
#[cfg(any(test, fuzzing))]
pub(crate) use property::bits;

/// Asking systemd for something failed.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// `linux.cgroupsPath` means something else here than a path.
    #[error(
        "cgroupsPath {path:?} is not of the form slice:prefix:name, which cgroups through systemd need"
    )]
    InvalidPath {
        /// What was given.
        path: String,
    },
    /// A slice's name says where it is, so it cannot be any.
    #[error("invalid slice name {name:?}")]
    InvalidSlice {
        /// What was given.
        name: String,
    },
    /// An annotation `org.systemd.property.*` cannot be read.
    #[error("annotation {name:?}: {value:?} is no value for a property of systemd")]
    InvalidProperty {
        /// The annotation.
        name: String,
        /// Its value.
        value: String,
    },
    /// This program was built into something that does not talk to systemd.
    #[error("this program cannot talk to systemd: use cgroupfs")]
    Unavailable,
    /// There is nobody to ask.
    #[error(
        "systemd is not running on this host or its bus is not reachable, cannot use systemd cgroups manager"
    )]
    Connect {
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It refused.
    #[error("{what}")]
    Call {
        /// What was asked.
        what: String,
        /// The answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It took the job and did not complete it.
    #[error("systemd: start of {unit} ended with {result:?}")]
    Job {
        /// The scope.
        unit: String,
        /// systemd's word.
        result: String,
    },
    /// The helper process that asks for a new scope.
    #[error("{what}")]
    Helper {
        /// What went wrong.
        what: String,
    },
}

/// Somebody who can talk to systemd: to the host's, or to a user's own.
pub trait Systemd: std::fmt::Debug + Sync {
    /// Starts a transient scope that holds `unit.pids`, and waits until it is there. Gives the group in which this manager
    /// keeps its slices: the root for the host's.
    ///
    /// # Errors
    ///
    /// If there is no such manager, or it refuses.
    fn start(&self, unit: &Unit) -> Result<PathBuf, SystemdError>;

    /// Stops a scope, and forgets that it failed if it did. One that is gone is stopped.
    ///
    /// # Errors
    ///
    /// As [`Systemd::start`].
    fn stop(&self, scope: &Scope) -> Result<(), SystemdError>;

    /// Changes properties of a scope until it ends.
    ///
    /// # Errors
    ///
    /// As [`Systemd::start`].
    fn set(&self, scope: &Scope, properties: &[(String, Property)]) -> Result<(), SystemdError>;
}

/// A scope by name, as it is kept in a container's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// With its ending `.scope`.
    pub name: String,
    /// Whether the user's own systemd keeps it.
    pub user: bool,
}

/// A scope to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    /// Its name.
    pub scope: Scope,
    /// All but the processes.
    pub properties: Vec<(String, Property)>,
    /// The group of its slice, below the manager's own.
    slice_group: PathBuf,
}

impl Unit {
    /// From a container's configuration.
    ///
    /// # Errors
    ///
    /// If `cgroupsPath` or an annotation cannot be understood.
    pub fn new(
        id: &str,
        path: &str,
        resources: &LinuxResources,
        annotations: &BTreeMap<String, String>,
        unified: bool,
        user: bool,
    ) -> Result<Self, SystemdError> {
        let invalid = || SystemdError::InvalidPath {
            path: path.to_owned(),
        };
        let (slice, prefix, name) = if path.is_empty() {
            ("", "knarr-oci", id)
        } else {
            let mut parts = path.split(':');
            match (parts.next(), parts.next(), parts.next(), parts.next()) {
                (Some(slice), Some(prefix), Some(name), None) if !name.is_empty() => {
                    (slice, prefix, name)
                }
                _ => return Err(invalid()),
            }
        };
        let slice = match (slice, user) {
            ("", true) => "user.slice",
            ("", false) => "system.slice",
            (slice, _) => slice,
        };
        let slice_group = expand_slice(slice)?;
        let name = if prefix.is_empty() {
            format!("{name}.scope")
        } else {
            format!("{prefix}-{name}.scope")
        };
        if name.contains('/') {
            return Err(invalid());
        }
        let text = |name: &str, value: &str| (name.to_owned(), Property::Text(value.to_owned()));
        let yes = |name: &str| (name.to_owned(), Property::Bool(true));
        let mut properties = vec![
            text("Description", &format!("knarr-oci container {id}")),
            text("Slice", slice),
            yes("Delegate"),
            yes("MemoryAccounting"),
            yes("CPUAccounting"),
            yes(if unified {
                "IOAccounting"
            } else {
                "BlockIOAccounting"
            }),
            yes("TasksAccounting"),
            ("DefaultDependencies".to_owned(), Property::Bool(false)),
        ];
        properties.extend(limits(resources, unified));
        for (key, value) in annotations {
            if let Some(name) = key.strip_prefix("org.systemd.property.") {
                let property = property::from_annotation(name, value).ok_or_else(|| {
                    SystemdError::InvalidProperty {
                        name: key.clone(),
                        value: value.clone(),
                    }
                })?;
                // An annotation has the last word.
                properties.retain(|(known, _)| *known != property.0);
                properties.push(property);
            }
        }
        Ok(Self {
            scope: Scope { name, user },
            properties,
            slice_group,
        })
    }

    /// Where its group is, given the manager's own.
    pub fn group(&self, manager: &std::path::Path) -> PathBuf {
        manager.join(&self.slice_group).join(&self.scope.name)
    }
}

/// `a-b.slice` is in `a.slice`; `-.slice` is the root (systemd.slice(5)).
fn expand_slice(name: &str) -> Result<PathBuf, SystemdError> {
    let invalid = || SystemdError::InvalidSlice {
        name: name.to_owned(),
    };
    let stem = name.strip_suffix(".slice").ok_or_else(invalid)?;
    if stem == "-" {
        return Ok(PathBuf::new());
    }
    let mut path = PathBuf::new();
    let mut above = String::new();
    for part in stem.split('-') {
        if part.is_empty() || part.contains('/') {
            return Err(invalid());
        }
        let this = format!("{above}{part}");
        path.push(format!("{this}.slice"));
        above = this + "-";
    }
    Ok(path)
}

/// systemd's word for "no limit".
const INFINITY: u64 = u64::MAX;

fn number(value: i64) -> Property {
    Property::Uint64(u64::try_from(value).unwrap_or(INFINITY))
}

/// Limits that systemd knows, so that it keeps them when it writes the group's files anew. All of them, and the others, are
/// written to the files too.
pub fn limits(resources: &LinuxResources, unified: bool) -> Vec<(String, Property)> {
    let mut all = Vec::new();
    let mut set = |name: &str, value: Option<Property>| {
        all.extend(value.map(|value| (name.to_owned(), value)));
    };
    let given = |value: Option<i64>| value.filter(|value| *value != 0);
    if let Some(memory) = resources.memory() {
        let limit = given(memory.limit());
        let name = if unified { "MemoryMax" } else { "MemoryLimit" };
        set(name, limit.map(number));
        if unified {
            set("MemoryLow", given(memory.reservation()).map(number));
            let swap = match (given(memory.swap()), limit) {
                (Some(-1), _) | (None, Some(-1)) => Some(-1),
                (Some(swap), Some(limit)) if limit > 0 => Some(swap.saturating_sub(limit).max(0)),
                _ => None,
            };
            set("MemorySwapMax", swap.map(number));
        }
    }
    if let Some(cpu) = resources.cpu() {
        let shares = cpu.shares().filter(|shares| *shares != 0);
        if unified {
            let idle = (cpu.idle() == Some(1)).then_some(0);
            let weight = idle.or(shares.map(v2::weight));
            set("CPUWeight", weight.map(Property::Uint64));
            let mask = |list: &Option<String>| {
                let list = list.as_deref().filter(|list| !list.is_empty())?;
                property::bits(list).map(Property::Bytes)
            };
            set("AllowedCPUs", mask(cpu.cpus()));
            set("AllowedMemoryNodes", mask(cpu.mems()));
        } else {
            set("CPUShares", shares.map(Property::Uint64));
        }
        let period = cpu.period().filter(|period| *period != 0);
        set("CPUQuotaPeriodUSec", period.map(Property::Uint64));
        let quota = given(cpu.quota());
        if quota.is_some() || period.is_some() {
            let per_second = match quota.and_then(|quota| u64::try_from(quota).ok()) {
                // systemd counts whole percents: rounded up, so that the file can hold what was asked for.
                Some(quota) => {
                    let exact =
                        u128::from(quota) * 1_000_000 / u128::from(period.unwrap_or(100_000));
                    u64::try_from(exact.div_ceil(10_000) * 10_000).unwrap_or(INFINITY)
                }
                None => INFINITY,
            };
            set("CPUQuotaPerSecUSec", Some(Property::Uint64(per_second)));
        }
    }
    let pids = resources.pids().as_ref().map(|pids| pids.limit());
    set("TasksMax", given(pids).map(number));
    if !unified {
        let weight = resources.block_io().as_ref().and_then(|io| io.weight());
        let weight = weight.filter(|weight| *weight != 0);
        set(
            "BlockIOWeight",
            weight.map(|weight| Property::Uint64(weight.into())),
        );
        return all;
    }
    for (file, value) in resources.unified().iter().flatten() {
        let name = match file.as_str() {
            "memory.min" => "MemoryMin",
            "memory.low" => "MemoryLow",
            "memory.high" => "MemoryHigh",
            "memory.max" => "MemoryMax",
            "memory.swap.max" => "MemorySwapMax",
            "pids.max" => "TasksMax",
            "cpu.weight" => "CPUWeight",
            // systemd does not touch the others.
            _ => continue,
        };
        let value = match value.trim() {
            "max" => Some(INFINITY),
            digits => digits.parse().ok(),
        };
        // What the kernel would refuse it refuses when the file is written.
        if let Some(value) = value {
            all.retain(|(known, _)| known != name);
            all.push((name.to_owned(), Property::Uint64(value)));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(
        path: &str,
        resources: &str,
        annotations: &[(&str, &str)],
    ) -> Result<Unit, SystemdError> {
        let annotations = annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let resources = serde_json::from_str(resources).unwrap();
        Unit::new("one", path, &resources, &annotations, true, false)
    }

    fn value(unit: &Unit, name: &str) -> Option<Property> {
        let mut found = unit.properties.iter().filter(|(known, _)| known == name);
        let value = found.next().map(|(_, value)| value.clone());
        assert!(found.next().is_none(), "{name} twice");
        value
    }

    #[test]
    fn slice_prefix_and_name_make_a_scope_and_its_group() {
        let group = |path: &str| {
            let unit = unit(path, "{}", &[]).unwrap();
            unit.group(std::path::Path::new("/"))
        };
        assert_eq!(
            group("machine-a.slice:libpod:12"),
            PathBuf::from("/machine.slice/machine-a.slice/libpod-12.scope")
        );
        assert_eq!(group("::x"), PathBuf::from("/system.slice/x.scope"));
        assert_eq!(group("-.slice:p:x"), PathBuf::from("/p-x.scope"));
        assert_eq!(
            group(""),
            PathBuf::from("/system.slice/knarr-oci-one.scope")
        );
        for wrong in [
            "/a/b",
            "a:b",
            "a.slice:b:c:d",
            "a.slice:b:",
            "a:b:c",
            "a--b.slice:b:c",
            "a.slice:b:../c",
            "../a.slice:b:c",
        ] {
            assert!(unit(wrong, "{}", &[]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn limits_become_properties() {
        let made = unit(
            "",
            r#"{"memory":{"limit":100,"swap":150},"pids":{"limit":-1},
                "cpu":{"shares":1024,"quota":12345,"period":100000,"cpus":"0,9-10"},
                "unified":{"memory.high":"max","pids.max":"5"}}"#,
            &[],
        )
        .unwrap();
        assert_eq!(value(&made, "MemoryMax"), Some(Property::Uint64(100)));
        assert_eq!(value(&made, "MemorySwapMax"), Some(Property::Uint64(50)));
        assert_eq!(value(&made, "MemoryHigh"), Some(Property::Uint64(INFINITY)));
        assert_eq!(value(&made, "TasksMax"), Some(Property::Uint64(5)));
        assert_eq!(value(&made, "CPUWeight"), Some(Property::Uint64(100)));
        assert_eq!(
            value(&made, "CPUQuotaPerSecUSec"),
            Some(Property::Uint64(130_000))
        );
        assert_eq!(
            value(&made, "AllowedCPUs"),
            Some(Property::Bytes(vec![1, 6]))
        );
    }

    #[test]
    fn annotations_are_properties() {
        let made = unit(
            "",
            "{}",
            &[
                ("org.systemd.property.TimeoutStopSec", "uint64 2"),
                ("org.systemd.property.CollectMode", "'inactive-or-failed'"),
                ("org.systemd.property.DefaultDependencies", "true"),
                ("other", "x"),
            ],
        )
        .unwrap();
        assert_eq!(
            value(&made, "TimeoutStopUSec"),
            Some(Property::Uint64(2_000_000))
        );
        assert_eq!(
            value(&made, "CollectMode"),
            Some(Property::Text("inactive-or-failed".into()))
        );
        assert_eq!(
            value(&made, "DefaultDependencies"),
            Some(Property::Bool(true))
        );
        assert!(unit("", "{}", &[("org.systemd.property.X", "true")]).is_err());
        assert!(unit("", "{}", &[("org.systemd.property.Name", "what")]).is_err());
    }
}
