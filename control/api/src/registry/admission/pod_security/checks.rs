//! The table of the checks of the Pod Security Standards, and which of them hold (pod-security-admission, `policy`).

use serde_json::Value;

use super::policy::{Level, LevelVersion, Version};
use super::{baseline, host, profiles, restricted};
use crate::strategy::validation::items;

/// What is checked: a pod, or the template of one.
#[derive(Clone, Copy)]
pub struct Pod<'a> {
    /// Its metadata, for annotations.
    pub metadata: &'a Value,
    /// Its spec.
    pub spec: &'a Value,
}

impl<'a> Pod<'a> {
    /// Every container of every kind, in the order in which messages name them.
    pub(super) fn containers(self) -> impl Iterator<Item = &'a Value> {
        ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .flat_map(move |list| items(&self.spec[list]).map(|(_, container)| container))
    }

    /// The names of the containers that something is true of.
    pub(super) fn where_container(self, mut is: impl FnMut(&'a Value) -> bool) -> Vec<&'a str> {
        self.containers()
            .filter(|container| is(container))
            .map(|container| text(&container["name"]))
            .collect()
    }

    /// Whether it does not run on Linux: what only Linux knows is not asked of it.
    pub(super) fn is_windows(self) -> bool {
        self.spec["os"]["name"] == "windows"
    }

    /// Whether root in it is nobody outside.
    pub(super) fn has_own_users(self) -> bool {
        self.spec["hostUsers"] == false
    }
}

/// A text field; empty if it is none.
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Why a pod does not follow a standard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// In a few words.
    pub reason: &'static str,
    /// With the names of what is wrong.
    pub detail: String,
}

/// Looks at a pod by the standards of a minor version.
type Look = fn(Pod<'_>, u32) -> Option<Violation>;

/// One check.
struct Check {
    /// Its name in kube-apiserver, by which checks are ordered.
    id: &'static str,
    level: Level,
    /// The minor version in which it came.
    since: u32,
    /// The check of a lower level whose place it takes.
    replaces: &'static str,
    look: Look,
}

const fn check(
    id: &'static str,
    level: Level,
    since: u32,
    replaces: &'static str,
    look: Look,
) -> Check {
    Check {
        id,
        level,
        since,
        replaces,
        look,
    }
}

/// All checks, in the order of their messages: by level, then by name.
#[rustfmt::skip] // The columns are compared.
static CHECKS: [Check; 19] = [
    //    id                            level              since  replaces                   look
    check("appArmorProfile",            Level::Baseline,   0,     "",                        profiles::app_armor),
    check("capabilities_baseline",      Level::Baseline,   0,     "",                        baseline::capabilities),
    check("hostNamespaces",             Level::Baseline,   0,     "",                        host::host_namespaces),
    check("hostPathVolumes",            Level::Baseline,   0,     "",                        host::host_paths),
    check("hostPorts",                  Level::Baseline,   0,     "",                        host::host_ports),
    check("hostProbesAndHostLifecycle", Level::Baseline,   34,    "",                        host::probed_hosts),
    check("privileged",                 Level::Baseline,   0,     "",                        baseline::privileged),
    check("procMount",                  Level::Baseline,   0,     "",                        baseline::proc_mount),
    check("seLinuxOptions",             Level::Baseline,   0,     "",                        profiles::se_linux),
    check("seccompProfile_baseline",    Level::Baseline,   0,     "",                        profiles::seccomp),
    check("sysctls",                    Level::Baseline,   0,     "",                        baseline::sysctls),
    check("windowsHostProcess",         Level::Baseline,   0,     "",                        host::windows_host_process),
    check("allowPrivilegeEscalation",   Level::Restricted, 8,     "",                        restricted::privilege_escalation),
    check("capabilities_restricted",    Level::Restricted, 22,    "capabilities_baseline",   restricted::capabilities),
    check("procMount_restricted",       Level::Restricted, 35,    "procMount",               restricted::proc_mount),
    check("restrictedVolumes",          Level::Restricted, 0,     "hostPathVolumes",         restricted::volumes),
    check("runAsNonRoot",               Level::Restricted, 0,     "",                        restricted::non_root),
    check("runAsUser",                  Level::Restricted, 23,    "",                        restricted::user),
    check("seccompProfile_restricted",  Level::Restricted, 19,    "seccompProfile_baseline", profiles::some_seccomp),
];

/// What a pod violates of the standards.
pub fn violations(standards: LevelVersion, pod: Pod<'_>) -> Vec<Violation> {
    let minor = match standards.version {
        Version::Minor(minor) => minor,
        Version::Latest => u32::MAX,
    };
    let holds = |check: &&Check| check.level <= standards.level && check.since <= minor;
    let replaced = |id: &str| CHECKS.iter().any(|c| holds(&c) && c.replaces == id);
    CHECKS
        .iter()
        .filter(holds)
        .filter(|check| !replaced(check.id))
        .filter_map(|check| (check.look)(pod, minor))
        .collect()
}

/// `host namespaces, privileged`.
pub fn reasons(violations: &[Violation]) -> String {
    let reasons: Vec<&str> = violations.iter().map(|v| v.reason).collect();
    reasons.join(", ")
}

/// `host namespaces (hostPID=true), privileged (container "a" must not …)`.
pub fn details(violations: &[Violation]) -> String {
    let details: Vec<String> = violations
        .iter()
        .map(|Violation { reason, detail }| format!("{reason} ({detail})"))
        .collect();
    details.join(", ")
}

/// `"a", "b"`.
pub(super) fn quoted<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items
        .into_iter()
        .map(|item| format!("\"{}\"", item.as_ref()))
        .collect();
    items.join(", ")
}

/// One word or its plural.
pub(super) fn plural(one: &'static str, many: &'static str, count: usize) -> &'static str {
    if count == 1 { one } else { many }
}

/// `container "a"`, `containers "a", "b"`.
pub(super) fn containers(names: &[&str]) -> String {
    let word = plural("container", "containers", names.len());
    format!("{word} {}", quoted(names))
}

/// `pod and container "a"`: who has set what is not allowed; none if nobody has.
pub(super) fn setters(pod: bool, names: &[&str]) -> Option<String> {
    let pod = pod.then(|| "pod".to_owned());
    let of_containers = (!names.is_empty()).then(|| containers(names));
    let setters: Vec<String> = pod.into_iter().chain(of_containers).collect();
    (!setters.is_empty()).then(|| setters.join(" and "))
}
