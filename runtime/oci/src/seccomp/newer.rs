//! System calls that are newer than a profile: `ENOSYS` instead of the profile's refusal.
//!
//! A C library tries a new call first and falls back to an old one when the kernel says that there is none (`ENOSYS`).
//! A profile that allows a list of calls and refuses the rest with `EPERM` would break that for every call that is
//! younger than the list. So what lies beyond the highest number that the profile names does not exist. runc has done so
//! since 1.0, and Docker's profile counts on it.

use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction};

/// Where `seccomp_data` has the number of the call, and the architecture (seccomp(2)).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// Calls of x32, which shares the architecture of x86_64.
const X32: u32 = 1 << 30;

/// Operations of BPF (linux/bpf_common.h): load a word, jump if equal, greater or a bit is set, return.
const LOAD: u16 = 0x20;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_SET: u16 = 0x45;
const RETURN: u16 = 0x06;

/// `SECCOMP_RET_ERRNO` with `ENOSYS`.
const NO_SUCH_CALL: u32 = 0x0005_0000 | libc::ENOSYS as u32;

/// What comes before the filter of a profile; it goes on in the filter.
pub(super) fn prelude(profile: &LinuxSeccomp) -> Vec<[u8; 8]> {
    let refuses = match profile.default_action() {
        LinuxSeccompAction::ScmpActErrno => {
            profile.default_errno_ret() != Some(libc::ENOSYS as u32)
        }
        LinuxSeccompAction::ScmpActKill
        | LinuxSeccompAction::ScmpActKillThread
        | LinuxSeccompAction::ScmpActKillProcess
        | LinuxSeccompAction::ScmpActTrap => true,
        // A tracer or an agent answers for itself.
        _ => false,
    };
    if !refuses {
        return Vec::new();
    }
    let mut architectures: Vec<ScmpArch> = listed(profile);
    architectures.push(ScmpArch::native());
    let highest = |wanted: ScmpArch| {
        architectures
            .contains(&wanted)
            .then(|| highest(profile, wanted))?
    };
    let mut code = Vec::new();
    for (architecture, audit) in AUDIT {
        if let Some(last) = highest(architecture) {
            let x32 = match architecture {
                ScmpArch::X8664 => highest(ScmpArch::X32),
                _ => None,
            };
            code.extend(block(audit, last, architecture == ScmpArch::X8664, x32));
        }
    }
    code
}

/// `AUDIT_ARCH_*` of linux/audit.h. Others have no such block, and get what the profile says.
const AUDIT: [(ScmpArch, u32); 8] = [
    (ScmpArch::X8664, 0xc000_003e),
    (ScmpArch::X86, 0x4000_0003),
    (ScmpArch::Aarch64, 0xc000_00b7),
    (ScmpArch::Arm, 0x4000_0028),
    (ScmpArch::Riscv64, 0xc000_00f3),
    (ScmpArch::Ppc64Le, 0xc000_0015),
    (ScmpArch::S390X, 0x8000_0016),
    (ScmpArch::Loongarch64, 0xc000_0102),
];

fn listed(profile: &LinuxSeccomp) -> Vec<ScmpArch> {
    let names = profile.architectures().iter().flatten();
    // One that is unknown is told of when the filter is made.
    names
        .filter_map(|name| super::library_arch(*name).ok())
        .collect()
}

/// The highest number that the profile names; `None` if it names no call of this architecture.
fn highest(profile: &LinuxSeccomp, architecture: ScmpArch) -> Option<u32> {
    let rules = profile.syscalls().iter().flatten();
    let numbers = rules.flat_map(|rule| rule.names()).filter_map(|name| {
        let number = ScmpSyscall::from_name_by_arch(name, architecture).ok()?;
        // Calls of other architectures have negative ones.
        u32::try_from(i32::from(number)).ok()
    });
    numbers.max()
}

/// Of one architecture: beyond `last`, or `x32`, there is nothing. Any other call goes on behind the block.
fn block(audit: u32, last: u32, has_x32: bool, x32: Option<u32>) -> Vec<[u8; 8]> {
    let op = |code: u16, yes: u8, no: u8, k: u32| {
        let ([c0, c1], [k0, k1, k2, k3]) = (code.to_ne_bytes(), k.to_ne_bytes());
        [c0, c1, yes, no, k0, k1, k2, k3]
    };
    let (load_audit, load) = (op(LOAD, 0, 0, ARCHITECTURE), op(LOAD, 0, 0, NUMBER));
    let refuse = op(RETURN, 0, 0, NO_SUCH_CALL);
    match x32 {
        Some(x32) => vec![
            load_audit,
            op(IF_EQUAL, 0, 5, audit),
            load,
            op(IF_SET, 1, 0, X32),
            op(IF_GREATER, 1, 2, last),
            op(IF_GREATER, 0, 1, x32),
            refuse,
        ],
        // What the profile does not know at all is refused as it says.
        None if has_x32 => vec![
            load_audit,
            op(IF_EQUAL, 0, 4, audit),
            load,
            op(IF_SET, 2, 0, X32),
            op(IF_GREATER, 0, 1, last),
            refuse,
        ],
        None => vec![
            load_audit,
            op(IF_EQUAL, 0, 3, audit),
            load,
            op(IF_GREATER, 0, 1, last),
            refuse,
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(action: &str, more: &str) -> LinuxSeccomp {
        let text = format!(
            r#"{{"defaultAction":"{action}",{more}"syscalls":[{{"names":["read","openat2"],"action":"SCMP_ACT_ALLOW"}}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    /// The verdict of the prelude on a call: `None` if it leaves it to the filter.
    fn verdict(code: &[[u8; 8]], audit: u32, number: u32) -> Option<u32> {
        let (mut at, mut word) = (0, 0);
        while let Some([c0, c1, yes, no, k @ ..]) = code.get(at).copied() {
            let (operation, k) = (u16::from_ne_bytes([c0, c1]), u32::from_ne_bytes(k));
            let jump = |taken: bool| 1 + usize::from(if taken { yes } else { no });
            at += match operation {
                LOAD => {
                    word = if k == NUMBER { number } else { audit };
                    1
                }
                IF_EQUAL => jump(word == k),
                IF_GREATER => jump(word > k),
                IF_SET => jump(word & k != 0),
                RETURN => return Some(k),
                other => panic!("operation {other:#x}"),
            };
        }
        assert_eq!(at, code.len(), "it ends where the filter begins");
        None
    }

    #[test]
    fn a_call_that_is_newer_than_the_profile_does_not_exist() {
        let more = r#""architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],"#;
        let code = prelude(&profile("SCMP_ACT_ERRNO", more));
        let (amd, intel, other) = (0xc000_003e, 0x4000_0003, 0x4000_0028);
        for (audit, number, refused) in [
            (amd, 0, false),
            (amd, 101, false),
            // openat2 is 437 everywhere.
            (amd, 437, false),
            (amd, 438, true),
            (amd, 1000, true),
            (amd, X32 | 437, false),
            (amd, X32 | 438, true),
            (intel, 437, false),
            (intel, 438, true),
            (other, 1000, false),
        ] {
            let wanted = refused.then_some(NO_SUCH_CALL);
            assert_eq!(
                verdict(&code, audit, number),
                wanted,
                "{audit:#x} {number:#x}"
            );
        }
        // Without x32 in the profile, its calls are refused as any other.
        let code = prelude(&profile(
            "SCMP_ACT_KILL_PROCESS",
            r#""architectures":["SCMP_ARCH_X86_64"],"#,
        ));
        assert_eq!(verdict(&code, amd, X32 | 1000), None);
        assert_eq!(verdict(&code, amd, 1000), Some(NO_SUCH_CALL));
        assert_eq!(verdict(&code, intel, 1000), None);
    }

    #[test]
    fn profiles_that_allow_or_say_so_themselves_have_no_prelude() {
        assert!(prelude(&profile("SCMP_ACT_ALLOW", "")).is_empty());
        assert!(prelude(&profile("SCMP_ACT_LOG", "")).is_empty());
        assert!(prelude(&profile("SCMP_ACT_ERRNO", r#""defaultErrnoRet":38,"#)).is_empty());
        assert!(!prelude(&profile("SCMP_ACT_ERRNO", r#""defaultErrnoRet":1,"#)).is_empty());
    }
}
