//! Old limits and new ones: what `update` writes, what it remembers, and what no version of cgroups can do.

use oci_spec::runtime::LinuxResources;
use serde_json::Value;

use super::CgroupError;
use crate::spec::retype;

/// The old limits with the new ones over them: a field that is not given stays, a list is replaced as a whole.
///
/// # Errors
///
/// If the result is no set of limits, which two sets of limits cannot bring about.
pub fn merge(old: &LinuxResources, new: &LinuxResources) -> Result<LinuxResources, CgroupError> {
    let value =
        |resources| retype::<Value>(resources).map_err(|source| CgroupError::Merge { source });
    let mut all = value(old)?;
    overlay(&mut all, value(new)?);
    retype(&all).map_err(|source| CgroupError::Merge { source })
}

fn overlay(below: &mut Value, above: Value) {
    match (below, above) {
        (_, Value::Null) => {}
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                overlay(below.entry(key).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above,
    }
}

/// What is to be written for `new`: itself, and from the old limits what has to be told together with it (the kernel's
/// swap limit is the difference of two of ours, and v2 has one file for quota and period).
///
/// Devices are left out: rules change nothing for a container that runs, as with runc.
///
/// # Errors
///
/// As [`merge`].
pub(crate) fn to_write(
    old: &LinuxResources,
    new: &LinuxResources,
) -> Result<LinuxResources, CgroupError> {
    let mut coupled = LinuxResources::default();
    if new
        .cpu()
        .as_ref()
        .is_some_and(|cpu| cpu.quota().is_some() || cpu.period().is_some())
        && let Some(before) = old.cpu()
    {
        let mut cpu = oci_spec::runtime::LinuxCpu::default();
        cpu.set_quota(before.quota()).set_period(before.period());
        coupled.set_cpu(Some(cpu));
    }
    if new
        .memory()
        .is_some_and(|memory| memory.limit().is_some() || memory.swap().is_some())
        && let Some(before) = old.memory()
    {
        let mut memory = oci_spec::runtime::LinuxMemory::default();
        memory.set_limit(before.limit()).set_swap(before.swap());
        // Lifting the one lifts the other.
        if new.memory().and_then(|memory| memory.limit()) == Some(-1) {
            memory.set_swap(None);
        }
        coupled.set_memory(Some(memory));
    }
    let mut all = merge(&coupled, new)?;
    all.set_devices(None);
    Ok(all)
}

/// Fields that have no effect here, one warning each; those which would break a promise are errors instead.
pub fn ignored(resources: &LinuxResources, unified: bool) -> Vec<String> {
    let Some(memory) = resources.memory() else {
        return Vec::new();
    };
    let set = |value: Option<i64>| value.is_some_and(|value| value != 0);
    let fields = [
        ("kernel", set(memory.kernel())),
        ("kernelTCP", unified && set(memory.kernel_tcp())),
        ("swappiness", unified && memory.swappiness().is_some()),
        (
            "disableOOMKiller",
            unified && memory.disable_oom_killer() == Some(true),
        ),
    ];
    let fields = fields.iter().filter(|(_, given)| *given);
    fields
        .map(|(name, _)| {
            let why = if unified && *name != "kernel" {
                "cgroup v2 has no such setting"
            } else {
                "the kernel no longer limits its own memory apart"
            };
            format!("linux.resources.memory.{name} is ignored: {why}")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(json: &str) -> LinuxResources {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn what_is_not_given_stays_and_what_is_wins() {
        let old = resources(
            r#"{"memory":{"limit":100,"reservation":5},"pids":{"limit":7},"unified":{"a.b":"1"}}"#,
        );
        let new = resources(r#"{"memory":{"limit":200},"unified":{"c.d":"2"}}"#);
        assert_eq!(
            merge(&old, &new).unwrap(),
            resources(
                r#"{"memory":{"limit":200,"reservation":5},"pids":{"limit":7},"unified":{"a.b":"1","c.d":"2"}}"#
            )
        );
    }

    #[test]
    fn coupled_values_are_written_together_and_the_rest_is_left_alone() {
        let old = resources(
            r#"{"memory":{"limit":100,"swap":150,"reservation":5},"cpu":{"period":1000,"quota":500,"shares":9}}"#,
        );
        let written = |json: &str| to_write(&old, &resources(json)).unwrap();
        assert_eq!(
            written(r#"{"cpu":{"quota":700}}"#),
            resources(r#"{"cpu":{"quota":700,"period":1000}}"#)
        );
        assert_eq!(
            written(r#"{"memory":{"limit":120}}"#),
            resources(r#"{"memory":{"limit":120,"swap":150}}"#)
        );
        assert_eq!(
            written(r#"{"memory":{"limit":-1}}"#),
            resources(r#"{"memory":{"limit":-1}}"#)
        );
        assert_eq!(
            written(r#"{"pids":{"limit":3},"devices":[{"allow":false,"access":"rwm"}]}"#),
            resources(r#"{"pids":{"limit":3}}"#)
        );
    }

    #[test]
    fn what_has_no_effect_is_told() {
        let given = resources(
            r#"{"memory":{"kernel":1,"kernelTCP":1,"swappiness":0,"disableOOMKiller":true}}"#,
        );
        assert_eq!(ignored(&given, true).len(), 4);
        assert_eq!(ignored(&given, false).len(), 1);
        assert!(ignored(&resources(r#"{"memory":{"disableOOMKiller":false}}"#), true).is_empty());
    }
}
