//! Labels of Linux security modules: which of those modules this kernel has.
//!
//! A label for a module that is not there has nothing to act on. For a process that is an error, as with runc: who asks for
//! a confinement must not get a process without it. The SELinux label of mounts confines nothing, so the container is made
//! without it, with a warning, as crun does and as the OCI validation suite expects.

use std::fs;
use std::path::Path;

use oci_spec::runtime::{Process, Spec};

/// Whether SELinux is on: the kernel makes its mount point then, and only then.
fn has_selinux() -> bool {
    Path::new("/sys/fs/selinux").exists()
}

/// Whether AppArmor is on.
fn has_apparmor() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|text| text.starts_with('Y'))
}

fn given(label: &Option<String>) -> Option<&str> {
    label.as_deref().filter(|label| !label.is_empty())
}

fn asked_of_apparmor(process: &Process) -> Option<&str> {
    given(process.apparmor_profile()).filter(|profile| *profile != "unconfined")
}

fn asked_of_mounts(spec: &Spec) -> Option<&str> {
    given(spec.linux().as_ref()?.mount_label())
}

/// The AppArmor profile to give a process.
pub(crate) fn apparmor(process: &Process) -> Option<&str> {
    asked_of_apparmor(process)
}

/// Why a process cannot have the profile that it asks for, if it cannot.
pub(crate) fn without_apparmor(process: &Process) -> Option<String> {
    let profile = asked_of_apparmor(process).filter(|_| !has_apparmor())?;
    Some(format!(
        "unable to apply apparmor profile {profile:?}: AppArmor is not enabled on the host"
    ))
}

/// The label to give new file systems, as far as this kernel can.
pub(crate) fn of_mounts(spec: &Spec) -> Option<&str> {
    asked_of_mounts(spec).filter(|_| has_selinux())
}

/// What the log should tell of a container's mounts.
pub(crate) fn mount_warning(spec: &Spec) -> Option<String> {
    let label = asked_of_mounts(spec).filter(|_| !has_selinux())?;
    Some(format!(
        "linux.mountLabel {label:?} has no effect: this kernel has no SELinux"
    ))
}
