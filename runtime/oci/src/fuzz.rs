//! What the fuzzer calls, one function per kind of input: the parser and all that is decided from what it read, up to, and
//! not including, the first thing that touches the machine.
//!
//! The inputs that were worth keeping lie in `fuzz/corpus`; the tests below feed them to the same functions. See `make fuzz`.
//!
//! Each tells whether the input was accepted: an input that is refused is fine, a panic is a finding. So is what the
//! assertions name.

use std::collections::BTreeMap;
use std::time::Duration;

use oci_spec::runtime::{LinuxResources, LinuxSeccomp, Process, Spec};

use crate::capability::Wanted;
use crate::cgroup::{Group, fuzz as cgroups, systemd};
use crate::id::ContainerId;
use crate::runtime::check;
use crate::state::{ProcStat, Record, Status};
use crate::{hooks, message, mount, process, seccomp, spec};

/// Takes an input, and tells whether it was accepted.
pub type Target = fn(&[u8]) -> bool;

/// All of them, by the name of their corpus.
pub const TARGETS: [(&str, Target); 8] = [
    ("config", config),
    ("process", process),
    ("state", state),
    ("seccomp", seccomp),
    ("mountinfo", mountinfo),
    ("cgroup", cgroup),
    ("resources", resources),
    ("words", words),
];

/// A bundle's `config.json`.
pub fn config(data: &[u8]) -> bool {
    let Ok(loaded) = spec::parse::<Spec>(data, |value| value.get_mut("process")) else {
        return false;
    };
    let spec = loaded.value;
    // It is kept beside the state, for exec, start and delete.
    assert_eq!(again(&spec), spec);
    let id = ContainerId::parse("id").expect("an id");
    let Ok(record) = check::decide(&id, &spec) else {
        return true;
    };
    assert_eq!(again(&record), record);
    if let Some(process) = spec.process() {
        settings(process);
    }
    let hooks = spec.hooks().iter().flat_map(hooks::before_pivot);
    for place in hooks {
        hooks::deadline(Duration::from_secs(
            place.hook.timeout().unwrap_or(1).unsigned_abs(),
        ));
        hooks::state_for(&record, 1, place.status);
    }
    let linux = spec.linux().as_ref().expect("checked");
    let none = LinuxResources::default();
    let limits = linux.resources().as_ref().unwrap_or(&none);
    cgroups::resources(&none, limits);
    if let Some(path) = linux.cgroups_path() {
        cgroups::path(&path.to_string_lossy(), limits, &record.annotations);
    }
    if let Some(profile) = linux.seccomp() {
        compile(profile);
    }
    true
}

/// A process as `exec --process` takes it.
pub fn process(data: &[u8]) -> bool {
    let Ok(loaded) = spec::parse::<Process>(data, |value| Some(value)) else {
        return false;
    };
    assert_eq!(again(&loaded.value), loaded.value);
    if check::check_process(&loaded.value).is_ok() {
        settings(&loaded.value);
    }
    true
}

/// `state.json`.
pub fn state(data: &[u8]) -> bool {
    let Ok(record) = serde_json::from_slice::<Record>(data) else {
        return false;
    };
    assert_eq!(again(&record), record);
    let state = hooks::state_for(&record, record.pid, Status::Running);
    serde_json::to_vec(&state).expect("hooks are told every state");
    let group = Group::from_record(record.cgroup.clone());
    assert_eq!(group.record(), &record.cgroup);
    group.directory("memory");
    true
}

/// `linux.seccomp`.
pub fn seccomp(data: &[u8]) -> bool {
    let Ok(profile) = serde_json::from_slice::<LinuxSeccomp>(data) else {
        return false;
    };
    assert_eq!(again(&profile), profile);
    compile(&profile);
    true
}

/// `/proc/self/mountinfo`.
pub fn mountinfo(data: &[u8]) -> bool {
    cgroups::mountinfo(&String::from_utf8_lossy(data));
    true
}

/// Files of a control group, each after a line `== name`.
pub fn cgroup(data: &[u8]) -> bool {
    cgroups::files(&String::from_utf8_lossy(data));
    true
}

/// Two values of `linux.resources`: limits, and an update of them.
pub fn resources(data: &[u8]) -> bool {
    let mut values = serde_json::Deserializer::from_slice(data).into_iter::<LinuxResources>();
    let (Some(Ok(old)), Some(Ok(new))) = (values.next(), values.next()) else {
        return false;
    };
    cgroups::resources(&old, &new);
    true
}

/// Whatever is one line or less: ids, paths, options, lists, properties; and what a container's process says.
pub fn words(data: &[u8]) -> bool {
    // What comes of it may be anything but a panic.
    let _report = message::parse(data, None);
    ProcStat::parse(data);
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    process::home_in(text, 0);
    if ContainerId::parse(text).is_ok() {
        assert!(!text.contains('/') && !text.starts_with('.'), "{text:?}");
    }
    let words: Vec<String> = text.split(',').map(str::to_owned).collect();
    let options = mount::Options::parse(&words);
    assert!(options.is_ok() || text.contains('\0'), "{text:?}");
    mount::propagation(text);
    if let (Some(ours), Some(bits)) = (process::parse_list(text), systemd::bits(text)) {
        let mut bytes: Vec<u8> = ours.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(bits.len());
        assert_eq!(bytes, bits, "two readers, one list: {text:?}");
    }
    let annotations = text.split_once('=').map(|(name, value)| {
        let name = format!("org.systemd.property.{name}");
        BTreeMap::from([(name, value.to_owned())])
    });
    let none = LinuxResources::default();
    cgroups::path(text, &none, &BTreeMap::new());
    cgroups::path("", &none, &annotations.unwrap_or_default());
    true
}

/// Written and read again.
fn again<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    let text = serde_json::to_vec(value).expect("what was read can be written");
    serde_json::from_slice(&text).expect("what was written can be read")
}

/// What is decided for a process before it is made.
fn settings(process: &Process) {
    let strings = process::strings(process.args().as_deref().unwrap_or_default());
    let environment = process::environment(process);
    if let (Ok(_), Ok(environment)) = (strings, environment) {
        assert!(!environment.is_empty(), "HOME at least");
    }
    if let Some(scheduler) = process.scheduler() {
        // Refused is fine.
        let _refused = process::scheduling(scheduler);
    }
    if let Some(affinity) = process.exec_cpu_affinity() {
        let lists = [affinity.initial(), affinity.cpu_affinity_final()];
        for list in lists.into_iter().flatten() {
            process::parse_list(list);
        }
    }
    for held in [0, 1, u64::MAX] {
        let (wanted, _) = Wanted::from_spec(process.capabilities().as_ref()).limit_to(held);
        let all = wanted.sets.permitted | wanted.sets.effective | wanted.sets.inheritable;
        assert_eq!(all & !held, 0, "nothing is given that is not held");
    }
}

fn compile(profile: &LinuxSeccomp) {
    if let Ok(program) = seccomp::compile(profile) {
        assert!(!program.instructions().is_empty());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    fn directory() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries =
            fs::read_dir(directory).unwrap_or_else(|error| panic!("{directory:?}: {error}"));
        let mut names: Vec<String> = entries
            .map(|entry| {
                let path = entry.unwrap().path();
                path.file_stem().unwrap().to_str().unwrap().to_owned()
            })
            .collect();
        names.sort();
        names
    }

    #[test]
    fn every_target_has_a_program_and_a_corpus() {
        let mut targets: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
        targets.sort_unstable();
        assert_eq!(names(&directory().join("fuzz_targets")), targets);
        assert_eq!(names(&directory().join("corpus")), targets);
    }

    #[test]
    fn nothing_in_the_corpus_of_the_fuzzer_is_a_finding() {
        for (name, target) in TARGETS {
            let corpus = directory().join("corpus").join(name);
            let (mut files, mut accepted) = (0, 0);
            for entry in fs::read_dir(&corpus).unwrap() {
                let path = entry.unwrap().path();
                // A panic does not say what it was given.
                println!("{}", path.display());
                files += 1;
                accepted += usize::from(target(&fs::read(&path).unwrap()));
            }
            // Something that is always refused tries nothing.
            assert!(accepted > 0, "{name}: none of {files} files is accepted");
        }
    }
}
