//! Capabilities: which of those asked for this process can have, and giving them.

use nix::libc;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

use crate::error::{Failure, OrFail, Step};
use crate::sys::{self, CapSets};

/// `CAP_SYS_ADMIN`, needed to install a seccomp filter without no_new_privs.
pub(crate) const SYS_ADMIN: u64 = 1 << 21;

/// What a process gets, as bits by capability number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub sets: CapSets,
    pub bounding: u64,
    pub ambient: u64,
}

impl Wanted {
    /// From the configuration; without any, a process has none.
    pub fn from_spec(spec: Option<&LinuxCapabilities>) -> Self {
        let Some(spec) = spec else {
            return Self::default();
        };
        Self {
            sets: CapSets {
                effective: bits(spec.effective().as_ref()),
                permitted: bits(spec.permitted().as_ref()),
                inheritable: bits(spec.inheritable().as_ref()),
            },
            bounding: bits(spec.bounding().as_ref()),
            ambient: bits(spec.ambient().as_ref()),
        }
    }

    /// Leaves out what cannot be granted, and says so: the specification asks for a warning, not for a failure.
    pub fn limit_to(mut self, held: u64) -> (Self, Vec<String>) {
        let asked = self.sets.permitted
            | self.sets.effective
            | self.sets.inheritable
            | self.bounding
            | self.ambient;
        let missing = asked & !held;
        self.bounding &= held;
        self.sets.permitted &= held;
        self.sets.effective &= self.sets.permitted;
        self.sets.inheritable &= held;
        // Who lists none at all as inheritable, as the example of older runcs does, cannot mean them.
        let raised = match self.sets.inheritable {
            0 => 0,
            _ => self.ambient & held,
        };
        self.ambient &= self.sets.permitted & self.sets.inheritable;
        let mut warnings = Vec::new();
        if missing != 0 {
            warnings.push(format!(
                "capabilities that cannot be granted are left out, because this process or kernel has them not: {}",
                names(missing).join(", ")
            ));
        }
        // The kernel's rule (capabilities(7), "Ambient"); begun in words of runc's.
        let refused = names(raised & !self.ambient);
        if !refused.is_empty() {
            warnings.push(format!(
                "can't raise ambient capability {}: not both permitted and inheritable",
                refused.join(", ")
            ));
        }
        (self, warnings)
    }

    /// Takes from the bounding set what is not wanted. Needs `CAP_SETPCAP`, so it comes first.
    pub fn drop_bounding(&self) -> Result<(), Failure> {
        for number in 0..64 {
            if self.bounding >> number & 1 == 1 {
                continue;
            }
            match sys::prctl(libc::PR_CAPBSET_DROP, number, 0) {
                // Beyond the last capability of this kernel.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
                done => done.map(drop).or_fail(
                    Step::Privileges,
                    || "drop a capability from the bounding set",
                )?,
            }
        }
        Ok(())
    }

    /// Sets the three sets, with `keep` held on to for a moment, then the ambient set.
    pub fn apply(&self, keep: u64) -> Result<(), Failure> {
        let sets = CapSets {
            effective: self.sets.effective | keep,
            permitted: self.sets.permitted | keep,
            ..self.sets
        };
        sys::capset(sets).or_fail(Step::Privileges, || "set capabilities")?;
        for number in (0..64).filter(|bit| self.ambient >> bit & 1 == 1) {
            sys::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_RAISE as u64,
                number,
            )
            .map(drop)
            .or_fail(Step::Privileges, || "set ambient capabilities")?;
        }
        Ok(())
    }
}

fn names(bits: u64) -> Vec<String> {
    let named = ALL.iter().enumerate();
    named
        .filter(|(bit, _)| bits >> bit & 1 == 1)
        .map(|(_, capability)| format!("CAP_{capability}"))
        .collect()
}

fn bits(set: Option<&Capabilities>) -> u64 {
    set.into_iter()
        .flatten()
        .fold(0, |all, capability| all | 1 << number(*capability))
}

/// All of them, each at the kernel's number (linux/capability.h).
const ALL: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

fn number(capability: Capability) -> usize {
    let found = ALL.iter().position(|one| *one == capability);
    found.expect("the list has every one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_capability_has_the_kernels_number() {
        for (capability, number_) in [
            (Capability::Chown, 0),
            (Capability::SysAdmin, 21),
            (Capability::CheckpointRestore, 40),
        ] {
            assert_eq!(number(capability), number_, "{capability}");
        }
        assert_eq!(1 << number(Capability::SysAdmin), SYS_ADMIN);
    }

    #[test]
    fn what_cannot_be_granted_is_left_out_with_a_warning() {
        let all = CapSets {
            effective: 0b111,
            permitted: 0b011,
            inheritable: 0b101,
        };
        let wanted = Wanted {
            sets: all,
            bounding: 0b111,
            ambient: 0b111,
        };
        let (got, warnings) = wanted.limit_to(0b101);
        assert_eq!(
            got.sets,
            CapSets {
                effective: 0b001,
                permitted: 0b001,
                inheritable: 0b101
            }
        );
        assert_eq!((got.bounding, got.ambient), (0b101, 0b001));
        assert!(warnings[0].ends_with(": CAP_DAC_OVERRIDE"), "{warnings:?}");
        let ambient = "can't raise ambient capability CAP_DAC_READ_SEARCH: ";
        assert!(warnings[1].starts_with(ambient), "{warnings:?}");
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(Wanted::default().limit_to(0).1.is_empty());
        let without_inheritable = Wanted {
            ambient: 0b001,
            ..Wanted::default()
        };
        let (got, warnings) = without_inheritable.limit_to(0b001);
        assert_eq!((got.ambient, warnings), (0, Vec::new()));
    }
}
