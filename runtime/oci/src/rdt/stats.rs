//! What a container has used of caches and memory bandwidth, in the shape of runc's `intel_rdt`.
//!
//! Sources: the types of runc's `events`; the kernel's Documentation/filesystems/resctrl.rst, "Info directory" and
//! "Resource alloc and monitor groups".

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Serialize;

use super::{Class, RdtError, resource};

/// Limits and counts of one class. What the machine cannot do is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RdtStats {
    /// What the L3 cache can be divided into.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l3_cache_info: Option<L3CacheInfo>,
    /// The line of the root, which is all that there is to share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l3_cache_schema_root: Option<String>,
    /// The line of the container's class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l3_cache_schema: Option<String>,
    /// What memory bandwidth can be divided into.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_bw_info: Option<MemBwInfo>,
    /// The line of the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_bw_schema_root: Option<String>,
    /// The line of the container's class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_bw_schema: Option<String>,
    /// Bytes that went to and from memory, by cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mbm_stats: Option<Vec<Bandwidth>>,
    /// Bytes held in the cache, by cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmt_stats: Option<Vec<Occupancy>>,
}

/// `info/L3`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct L3CacheInfo {
    /// The mask of the whole cache, in hexadecimal digits.
    pub cbm_mask: String,
    /// How many bits a mask has at least.
    pub min_cbm_bits: u64,
    /// How many classes there can be.
    pub num_closids: u64,
}

/// `info/MB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemBwInfo {
    /// In which steps it can be given, in percent.
    pub bandwidth_gran: u64,
    /// Whether the delay grows with the value (1) or not (0).
    pub delay_linear: u64,
    /// The least that can be given, in percent.
    pub min_bandwidth: u64,
    /// How many classes there can be.
    pub num_closids: u64,
}

/// Bytes through one cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Bandwidth {
    /// All.
    pub mbm_total_bytes: u64,
    /// To and from the memory of the cache's own node.
    pub mbm_local_bytes: u64,
}

/// Bytes in one cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Occupancy {
    /// Now.
    pub llc_occupancy: u64,
}

impl Class {
    /// Counted in the container's own group if it has one (`enableMonitoring`), else in its whole class, which it may share.
    pub fn stats(&self) -> Result<RdtStats, RdtError> {
        let info = self.root.join("info");
        let of_root = text(&self.root.join("schemata"))?;
        let of_class = text(&self.directory.join("schemata"))?;
        let line = |schemata: &str, name: &str| {
            let mut lines = schemata.lines().filter(|line| resource(line) == name);
            lines.next().map(|line| line.trim().to_owned())
        };
        let mut stats = RdtStats::default();
        let cache = info.join("L3");
        if cache.exists() {
            stats.l3_cache_info = Some(L3CacheInfo {
                cbm_mask: text(&cache.join("cbm_mask"))?.trim().to_owned(),
                min_cbm_bits: number(&cache.join("min_cbm_bits"))?,
                num_closids: number(&cache.join("num_closids"))?,
            });
            stats.l3_cache_schema_root = line(&of_root, "L3");
            stats.l3_cache_schema = line(&of_class, "L3");
        }
        let bandwidth = info.join("MB");
        if bandwidth.exists() {
            stats.mem_bw_info = Some(MemBwInfo {
                bandwidth_gran: number(&bandwidth.join("bandwidth_gran"))?,
                delay_linear: number(&bandwidth.join("delay_linear"))?,
                min_bandwidth: number(&bandwidth.join("min_bandwidth"))?,
                num_closids: number(&bandwidth.join("num_closids"))?,
            });
            stats.mem_bw_schema_root = line(&of_root, "MB");
            stats.mem_bw_schema = line(&of_class, "MB");
        }
        let monitoring = info.join("L3_MON");
        if monitoring.exists() {
            let features = text(&monitoring.join("mon_features"))?;
            let group = self.monitor.as_ref().unwrap_or(&self.directory);
            count(&group.join("mon_data"), &features, &mut stats)?;
        }
        Ok(stats)
    }
}

/// One directory for each cache, in the order of their numbers.
fn count(directory: &Path, features: &str, stats: &mut RdtStats) -> Result<(), RdtError> {
    let has = |name: &str| features.lines().any(|feature| feature.trim() == name);
    let entries = fs::read_dir(directory).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.map_err(unread(directory))?;
    let of_l3 = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        name.as_encoded_bytes().starts_with(b"mon_L3_")
    };
    let mut caches: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
    caches.retain(of_l3);
    caches.sort();
    let (total, local) = (has("mbm_total_bytes"), has("mbm_local_bytes"));
    let counted = |enabled: bool, path: PathBuf| match enabled {
        true => counter(&path),
        false => Ok(0),
    };
    if total || local {
        let bandwidth = |cache: &PathBuf| {
            Ok(Bandwidth {
                mbm_total_bytes: counted(total, cache.join("mbm_total_bytes"))?,
                mbm_local_bytes: counted(local, cache.join("mbm_local_bytes"))?,
            })
        };
        stats.mbm_stats = Some(caches.iter().map(bandwidth).collect::<Result<_, _>>()?);
    }
    if has("llc_occupancy") {
        let occupancy = |cache: &PathBuf| {
            Ok(Occupancy {
                llc_occupancy: counter(&cache.join("llc_occupancy"))?,
            })
        };
        stats.cmt_stats = Some(caches.iter().map(occupancy).collect::<Result<_, _>>()?);
    }
    Ok(())
}

/// The kernel says `Unavailable` or `Error` where the processor cannot tell just now: nothing is counted then, and the other
/// caches keep their places in the list.
fn counter(path: &Path) -> Result<u64, RdtError> {
    match text(path)?.trim() {
        "Unavailable" | "Error" => Ok(0),
        number => parse(path, number),
    }
}

fn number(path: &Path) -> Result<u64, RdtError> {
    parse(path, text(path)?.trim())
}

fn parse(path: &Path, text: &str) -> Result<u64, RdtError> {
    u64::from_str(text)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        .map_err(unread(path))
}

fn text(path: &Path) -> Result<String, RdtError> {
    fs::read_to_string(path).map_err(unread(path))
}

fn unread(path: &Path) -> impl FnOnce(io::Error) -> RdtError {
    let path = path.to_owned();
    |source| RdtError::Read { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A class in a directory with what the kernel has in its root.
    fn class(own_group: bool, files: &[(&str, &str)]) -> (tempfile::TempDir, Class) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_owned();
        let write = |name: &str, text: &str| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("schemata", "    L3:0=fff;1=fff\n    MB:0=100;1=100\n");
        write("one/schemata", "    MB:0= 20;1= 70\n    L3:0=00f;1=0f0\n");
        for (name, text) in files {
            write(name, text);
        }
        let class = Class {
            directory: root.join("one"),
            monitor: own_group.then(|| root.join("one/mon_groups/one")),
            own: true,
            root,
        };
        (directory, class)
    }

    const CACHE: [(&str, &str); 3] = [
        ("info/L3/cbm_mask", "fff\n"),
        ("info/L3/min_cbm_bits", "1\n"),
        ("info/L3/num_closids", "16\n"),
    ];

    #[test]
    fn all_that_the_machine_can_is_told_in_the_words_of_runc() {
        let data = |file: &str| format!("one/mon_groups/one/mon_data/{file}");
        let counted = [
            (data("mon_L3_01/llc_occupancy"), "5\n"),
            (data("mon_L3_01/mbm_total_bytes"), "7\n"),
            (data("mon_L3_01/mbm_local_bytes"), "Unavailable\n"),
            (data("mon_L3_00/llc_occupancy"), "4096\n"),
            (data("mon_L3_00/mbm_total_bytes"), "18446744073709551615\n"),
            (data("mon_L3_00/mbm_local_bytes"), "3\n"),
            // Of another resource.
            (data("mon_PERF_PKG_00/core_energy"), "1.5\n"),
        ];
        let mut files = CACHE.to_vec();
        files.extend([
            ("info/MB/bandwidth_gran", "10\n"),
            ("info/MB/delay_linear", "1\n"),
            ("info/MB/min_bandwidth", "10\n"),
            ("info/MB/num_closids", "8\n"),
            (
                "info/L3_MON/mon_features",
                "llc_occupancy\nmbm_total_bytes\nmbm_total_bytes_config\nmbm_local_bytes\n",
            ),
        ]);
        files.extend(counted.iter().map(|(name, text)| (name.as_str(), *text)));
        let (_directory, class) = class(true, &files);
        let stats = serde_json::to_value(class.stats().unwrap()).unwrap();
        let wanted = json!({
            "l3_cache_info": { "cbm_mask": "fff", "min_cbm_bits": 1, "num_closids": 16 },
            "l3_cache_schema_root": "L3:0=fff;1=fff",
            "l3_cache_schema": "L3:0=00f;1=0f0",
            "mem_bw_info": { "bandwidth_gran": 10, "delay_linear": 1, "min_bandwidth": 10, "num_closids": 8 },
            "mem_bw_schema_root": "MB:0=100;1=100",
            "mem_bw_schema": "MB:0= 20;1= 70",
            "mbm_stats": [
                { "mbm_total_bytes": u64::MAX, "mbm_local_bytes": 3 },
                { "mbm_total_bytes": 7, "mbm_local_bytes": 0 },
            ],
            "cmt_stats": [{ "llc_occupancy": 4096 }, { "llc_occupancy": 5 }],
        });
        assert_eq!(stats, wanted);
    }

    #[test]
    fn what_the_machine_cannot_do_is_left_out() {
        let (_directory, cache_only) = class(false, &CACHE);
        let stats = serde_json::to_value(cache_only.stats().unwrap()).unwrap();
        let keys: Vec<_> = stats.as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            ["l3_cache_info", "l3_cache_schema", "l3_cache_schema_root"]
        );
        // Counted for the class, because the container has no group of its own.
        let files = [
            ("info/L3_MON/mon_features", "llc_occupancy\n"),
            ("one/mon_data/mon_L3_00/llc_occupancy", "9\n"),
        ];
        let (_directory, counted) = class(false, &files);
        let stats = serde_json::to_value(counted.stats().unwrap()).unwrap();
        assert_eq!(stats, json!({ "cmt_stats": [{ "llc_occupancy": 9 }] }));
    }

    #[test]
    fn a_file_that_is_not_as_the_kernel_writes_it_is_named() {
        let mut files = CACHE.to_vec();
        files[1].1 = "many\n";
        let (_directory, class) = class(false, &files);
        let error = class.stats().unwrap_err().to_string();
        assert!(error.contains("min_cbm_bits"), "{error}");
    }
}
