//! Seccomp: from a profile to the BPF program that the kernel takes, at the price of one compilation per profile.
//!
//! `libseccomp` knows every architecture, action and system call, and needs about a millisecond for a usual profile. So
//! compiled programs are kept in files named by the SHA-256 of the profile, in a directory that only root can write.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator,
};
use sha2::{Digest, Sha256};

use crate::sys::SockFilter;

mod default;
mod newer;
mod notify;

pub use default::default_profile;
pub use notify::NotifyError;
pub(crate) use notify::hand_over;

/// A profile cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// It holds what the library refuses.
    #[error("{what}")]
    Library {
        /// What was tried.
        what: String,
        /// Why not.
        source: libseccomp::error::SeccompError,
    },
    /// It holds what cannot be.
    #[error("seccomp: {what}")]
    Invalid {
        /// What.
        what: String,
    },
}

/// A compiled profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    instructions: Vec<SockFilter>,
    /// `SECCOMP_FILTER_FLAG_*` for seccomp(2).
    flags: u64,
    /// Whether it sends notifications, and so has a listener.
    notifies: bool,
}

impl Program {
    /// The instructions.
    pub fn instructions(&self) -> &[SockFilter] {
        &self.instructions
    }

    /// The flags with which to install it.
    pub fn flags(&self) -> u64 {
        if self.notifies {
            self.flags | crate::sys::SECCOMP_NEW_LISTENER
        } else {
            self.flags
        }
    }
}

/// Compiled programs on disk.
#[derive(Clone, Debug)]
pub struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// In this directory, which is made when first needed. Only root may write there: what lies in it is trusted.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The program of a profile, compiled now or some time before.
    ///
    /// # Errors
    ///
    /// If it cannot be compiled. A cache that cannot be read or written only costs time.
    pub fn compile(&self, profile: &LinuxSeccomp) -> Result<Program, SeccompError> {
        notify::check(profile)?;
        let (flags, notifies) = attributes(profile);
        let path = self.directory.join(key(profile));
        if let Some(instructions) = load(&path) {
            return Ok(Program {
                instructions,
                flags,
                notifies,
            });
        }
        let (program, bytes) = compile_bytes(profile)?;
        // The cache only saves time: without it the program is right, too.
        let _uncached = store(&self.directory, &path, &bytes);
        Ok(program)
    }
}

/// Of the profile's content, and of what else the program depends on: the library's version.
fn key(profile: &LinuxSeccomp) -> String {
    let mut hash = Sha256::new();
    // The order of maps cannot vary: a profile has lists only.
    hash.update(serde_json::to_vec(profile).unwrap_or_default());
    let version =
        libseccomp::ScmpVersion::current().map_or((0, 0, 0), |v| (v.major, v.minor, v.micro));
    hash.update(format!("{version:?} 2").as_bytes());
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn load(path: &Path) -> Option<Vec<SockFilter>> {
    let bytes = fs::read(path).ok()?;
    if bytes.is_empty() || bytes.len() % 8 != 0 {
        return None;
    }
    Some(decode(&bytes))
}

fn decode(bytes: &[u8]) -> Vec<SockFilter> {
    bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|chunk| SockFilter::from_bytes(*chunk))
        .collect()
}

/// Under another name first, so that nobody ever reads half a program.
fn store(directory: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let scratch = path.with_extension(std::process::id().to_string());
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&scratch)?;
    file.write_all(bytes)?;
    fs::rename(scratch, path)
}

/// Compiles a profile.
///
/// # Errors
///
/// For what the library refuses. System calls that it does not know are skipped, as all runtimes do: profiles are shared
/// between kernels.
pub fn compile(profile: &LinuxSeccomp) -> Result<Program, SeccompError> {
    compile_bytes(profile).map(|(program, _)| program)
}

fn attributes(profile: &LinuxSeccomp) -> (u64, bool) {
    let flag = |flag: &LinuxSeccompFilterFlag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 1,
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => 2,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 4,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 32,
    };
    let mut flags = profile
        .flags()
        .iter()
        .flatten()
        .map(flag)
        .fold(0, |all, flag| all | flag);
    let notifies = notify::asks(profile);
    // The process has one thread; and TSYNC with a listener is refused by the kernel.
    flags &= !1;
    if !notifies {
        // Nobody is waited for, and the kernel refuses the flag (WAIT_KILLABLE_RECV) then.
        flags &= !32;
    }
    (flags, notifies)
}

/// The library's value for an architecture, by the name that both have.
fn library_arch(architecture: Arch) -> Result<ScmpArch, SeccompError> {
    let name = serde_json::to_value(architecture).unwrap_or_default();
    let name = name.as_str().unwrap_or_default();
    name.parse().map_err(|source| SeccompError::Library {
        what: format!("seccomp architecture {name}"),
        source,
    })
}

fn compile_bytes(profile: &LinuxSeccomp) -> Result<(Program, Vec<u8>), SeccompError> {
    let failed = |what: String| move |source| SeccompError::Library { what, source };
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut context =
        ScmpFilterContext::new(default).map_err(failed("start a seccomp filter".into()))?;
    // A balanced tree instead of a list of comparisons: fewer instructions at each system call (libseccomp 2.5).
    let _older = context.set_ctl_optimize(2);
    for architecture in profile.architectures().iter().flatten() {
        context
            .add_arch(library_arch(*architecture)?)
            .map_err(failed(format!("add seccomp architecture {architecture}")))?;
    }
    for rule in profile.syscalls().iter().flatten() {
        let verdict = action(rule.action(), rule.errno_ret())?;
        // The library refuses rules that say what happens anyway.
        if verdict == default {
            continue;
        }
        let groups = comparisons(rule.args().as_deref().unwrap_or_default())?;
        for name in rule.names() {
            let Ok(number) = ScmpSyscall::from_name(name) else {
                continue;
            };
            for group in &groups {
                context
                    .add_rule_conditional(verdict, number, group)
                    .map_err(failed(format!("add a seccomp rule for {name}")))?;
            }
        }
    }
    let mut bytes = newer::prelude(profile).concat();
    bytes.extend(export(&context)?);
    let (flags, notifies) = attributes(profile);
    Ok((
        Program {
            instructions: decode(&bytes),
            flags,
            notifies,
        },
        bytes,
    ))
}

/// Through a memory file: the library's own export to memory is newer than Debian 12.
fn export(context: &ScmpFilterContext) -> Result<Vec<u8>, SeccompError> {
    use std::io::{Read, Seek};
    let invalid = |error: io::Error| SeccompError::Invalid {
        what: format!("export the filter: {error}"),
    };
    let fd = nix::sys::memfd::memfd_create(c"seccomp", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
        .map_err(|error| invalid(error.into()))?;
    let mut file = fs::File::from(fd);
    context
        .export_bpf(&file)
        .map_err(|source| SeccompError::Library {
            what: "export the filter".into(),
            source,
        })?;
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut bytes))
        .map_err(invalid)?;
    Ok(bytes)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, SeccompError> {
    let number = |default: u32| errno.unwrap_or(default);
    let too_large = || SeccompError::Invalid {
        what: format!("errnoRet {errno:?} is too large"),
    };
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            ScmpAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => {
            let value = i32::try_from(number(libc::EPERM as u32))
                .ok()
                .filter(|value| *value <= 4095);
            ScmpAction::Errno(value.ok_or_else(too_large)?)
        }
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
        LinuxSeccompAction::ScmpActTrace => {
            ScmpAction::Trace(u16::try_from(number(libc::EPERM as u32)).map_err(|_| too_large())?)
        }
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
    })
}

/// The comparisons of one rule hold all together; but several on one argument are alternatives, each a rule of its own, as
/// libseccomp takes only one comparison per argument and Docker's profiles mean it so.
fn comparisons(args: &[LinuxSeccompArg]) -> Result<Vec<Vec<ScmpArgCompare>>, SeccompError> {
    let compare = |arg: &LinuxSeccompArg| {
        let index = u32::try_from(arg.index()).ok().filter(|index| *index < 6);
        let index = index.ok_or_else(|| SeccompError::Invalid {
            what: format!("argument {}", arg.index()),
        })?;
        let (op, value) = match arg.op() {
            LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
            LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
            LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
            LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
            LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
            LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
            LinuxSeccompOperator::ScmpCmpMaskedEq => (
                ScmpCompareOp::MaskedEqual(arg.value()),
                arg.value_two().unwrap_or(0),
            ),
        };
        Ok(ScmpArgCompare::new(index, op, value))
    };
    let all: Vec<ScmpArgCompare> = args
        .iter()
        .map(compare)
        .collect::<Result<_, SeccompError>>()?;
    let mut indexes: Vec<usize> = args.iter().map(LinuxSeccompArg::index).collect();
    indexes.sort_unstable();
    let distinct = indexes.windows(2).all(|pair| pair[0] != pair[1]);
    Ok(if distinct {
        vec![all]
    } else {
        all.into_iter().map(|one| vec![one]).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_compilation_comes_from_the_cache_and_is_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::new(directory.path().join("seccomp"));
        let profile = default_profile(&[]);
        let first = cache.compile(&profile).unwrap();
        assert_eq!(
            fs::read_dir(directory.path().join("seccomp"))
                .unwrap()
                .count(),
            1
        );
        assert_eq!(first, cache.compile(&profile).unwrap());
        assert_eq!(first, compile(&profile).unwrap());
    }

    #[test]
    fn a_filter_knows_the_architectures_it_is_told() {
        // AUDIT_ARCH_I386, which a filter compares seccomp_data.arch with.
        let knows_x86 = |program: &Program| format!("{program:?}").contains("k: 1073741827");
        let profile = |more: &str| {
            let text = format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW",{more}"syscalls":[{{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}}]}}"#
            );
            serde_json::from_str::<LinuxSeccomp>(&text).unwrap()
        };
        assert!(!knows_x86(&compile(&profile("")).unwrap()));
        let both = profile(r#""architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],"#);
        assert!(knows_x86(&compile(&both).unwrap()));
        let unknown = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_PDP11"]}"#;
        assert!(serde_json::from_str::<LinuxSeccomp>(unknown).is_err());
    }

    #[test]
    fn flags_reach_the_kernel_unless_it_would_refuse_them() {
        let flags = |action: &str| {
            let text = format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x","flags":["SECCOMP_FILTER_FLAG_TSYNC","SECCOMP_FILTER_FLAG_LOG",
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW","SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
                "syscalls":[{{"names":["mkdir"],"action":"{action}"}}]}}"#
            );
            compile(&serde_json::from_str(&text).unwrap())
                .unwrap()
                .flags()
        };
        let (log, spec_allow, new_listener, wait_killable) = (2, 4, 8, 32);
        assert_eq!(flags("SCMP_ACT_ERRNO"), log | spec_allow);
        assert_eq!(
            flags("SCMP_ACT_NOTIFY"),
            log | spec_allow | new_listener | wait_killable
        );
    }

    #[test]
    fn unknown_system_calls_are_skipped_and_bad_errnos_refused() {
        let profile = |json| serde_json::from_str::<LinuxSeccomp>(json).unwrap();
        let rule = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["no_such_call","mkdir"],"action":"SCMP_ACT_ERRNO"}]}"#;
        assert!(compile(&profile(rule)).is_ok());
        let rule = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO","errnoRet":70000}]}"#;
        assert!(compile(&profile(rule)).is_err());
    }
}
