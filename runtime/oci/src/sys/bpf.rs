//! Device rules of cgroup v2.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{check, check_fd};

/// The command of bpf(2) that loads a program.
const BPF_PROG_LOAD: c_int = 5;

/// The command of bpf(2) that attaches one to a cgroup.
const BPF_PROG_ATTACH: c_int = 8;

/// Loads a device-control program for cgroup v2; each instruction is its eight bytes.
///
/// # Errors
///
/// `EPERM` without `CAP_BPF`; `EACCES` if the verifier refuses it.
pub fn bpf_load_device_program(instructions: &[[u8; 8]]) -> io::Result<OwnedFd> {
    #[repr(C, align(8))]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        rest: [u8; 104],
    }
    let attr = Load {
        prog_type: 15, // BPF_PROG_TYPE_CGROUP_DEVICE
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        rest: [0; 104],
    };
    // SAFETY: the pointers in `attr` name the instructions with their count and a NUL-terminated string; the rest is zero.
    check_fd(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const attr,
            size_of::<Load>(),
        )
    })
}

/// Attaches a device-control program to a cgroup, beside others that are there (`BPF_F_ALLOW_MULTI`).
///
/// # Errors
///
/// `EPERM` if an ancestor forbids it.
pub fn bpf_attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> io::Result<()> {
    #[repr(C)]
    struct Attach {
        target_fd: u32,
        attach_bpf_fd: u32,
        attach_type: u32,
        attach_flags: u32,
    }
    let attr = Attach {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: 6, // BPF_CGROUP_DEVICE
        attach_flags: 2,
    };
    // SAFETY: `attr` is the head of bpf_attr for this command; the kernel takes what is missing as zero.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attr,
            size_of::<Attach>(),
        )
    })?;
    Ok(())
}
