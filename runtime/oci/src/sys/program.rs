//! The file that this process's program is mapped from.

use std::fs::File;
use std::io::{self, Read};
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::ptr;

use super::check;

/// A loadable part of a program, or the part of it that is to be read-only (elf(5)).
type Part = libc::Elf64_Phdr;

/// Maps this program anew from `file`, and makes that the one that `/proc/self/exe` leads to: what an exec of the file
/// would do, but this process goes on where it is.
///
/// Nothing that is mapped now stays mapped from the other mount, or the kernel refuses the change (`EBUSY`, kernel/sys.c,
/// `replace_mm_exe_file`). Only programs of one thread may call it. Source: prctl(2), `PR_SET_MM_MAP`.
///
/// # Errors
///
/// `EPERM` without `CAP_CHECKPOINT_RESTORE` or `CAP_SYS_ADMIN`, `EINVAL` on a kernel that is built without
/// `CONFIG_CHECKPOINT_RESTORE`, `InvalidInput` if `file` is another one than the program runs from. The program can go on
/// then, and so after every failure.
pub fn run_from(file: &File) -> io::Result<()> {
    let (ours, other) = (std::fs::metadata("/proc/self/exe")?, file.metadata()?);
    if (ours.dev(), ours.ino()) != (other.dev(), other.ino()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the call takes an integer and gives one.
    let told = |what| unsafe { libc::getauxval(what) as usize };
    let (headers, count) = (told(libc::AT_PHDR), told(libc::AT_PHNUM));
    let page = told(libc::AT_PAGESZ);
    if headers == 0 || page == 0 || told(libc::AT_PHENT) != size_of::<Part>() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // SAFETY: the kernel has mapped the program's headers there, all `count` of them, and nothing writes to them.
    let parts = unsafe { std::slice::from_raw_parts(headers as *const Part, count) };
    let of = |kind| parts.iter().filter(move |part| part.p_type == kind);
    // Where the headers stand, against where the file says that they do.
    let own = of(libc::PT_PHDR).next().ok_or(io::ErrorKind::Unsupported)?;
    let shift = headers.wrapping_sub(own.p_vaddr as usize);
    for part in of(libc::PT_LOAD).filter(|part| part.p_filesz > 0) {
        let first = shift.wrapping_add(part.p_vaddr as usize);
        let start = first / page * page;
        let length = (first + part.p_filesz as usize).next_multiple_of(page) - start;
        if part.p_flags & libc::PF_W == 0 {
            let offset = part.p_offset as usize / page * page;
            map(start, length, part.p_flags, file, offset)?;
        } else {
            detach(start, length)?;
        }
    }
    for part in of(libc::PT_GNU_RELRO) {
        let start = shift.wrapping_add(part.p_vaddr as usize) / page * page;
        let end = shift.wrapping_add((part.p_vaddr + part.p_memsz) as usize) / page * page;
        // SAFETY: takes away what the loader took away of the same pages after its start-up.
        check(unsafe { libc::mprotect(start as *mut _, end - start, libc::PROT_READ) }.into())?;
    }
    let mut map = Map::of_this()?;
    map.exe_fd = file.as_raw_fd() as u32;
    // SAFETY: the kernel reads one map of the size that is named. It changes what it tells of this process, and no memory.
    let changed = unsafe {
        libc::prctl(
            libc::PR_SET_MM,
            libc::PR_SET_MM_MAP,
            &raw const map,
            size_of::<Map>(),
            0,
        )
    };
    check(changed.into())?;
    Ok(())
}

/// `struct prctl_mm_map` of <linux/prctl.h>: where a process says that its parts are.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Map {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    /// None leaves the vector as it is.
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

impl Map {
    /// As the kernel has it for this process.
    fn of_this() -> io::Result<Self> {
        // Made anew for each read, so one that is large enough for all of it.
        let mut text = [0; 2048];
        let length = File::open("/proc/self/stat")?.read(&mut text)?;
        let stat = String::from_utf8_lossy(&text[..length]);
        let mut map = Self::parse(&stat).ok_or(io::ErrorKind::InvalidData)?;
        // SAFETY: asks only where the end is.
        map.brk = unsafe { libc::sbrk(0) } as u64;
        Ok(map)
    }

    /// From the text of `/proc/<pid>/stat`, whose fields proc_pid_stat(5) counts from 1; the second one may hold anything.
    fn parse(stat: &str) -> Option<Self> {
        let (_, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse().ok();
        Some(Self {
            start_code: field(26)?,
            end_code: field(27)?,
            start_stack: field(28)?,
            start_data: field(45)?,
            end_data: field(46)?,
            start_brk: field(47)?,
            arg_start: field(48)?,
            arg_end: field(49)?,
            env_start: field(50)?,
            env_end: field(51)?,
            ..Self::default()
        })
    }
}

/// Puts the same pages of `file` in place of those that are there.
fn map(start: usize, length: usize, flags: u32, file: &File, offset: usize) -> io::Result<()> {
    let mut protection = libc::PROT_READ;
    if flags & libc::PF_X != 0 {
        protection |= libc::PROT_EXEC;
    }
    // SAFETY: the pages there are of this very part, which nobody can have written to, so the program finds the same bytes
    // at the same place as before, be they the ones that it executes now.
    let mapped = unsafe {
        libc::mmap(
            start as *mut _,
            length,
            protection,
            libc::MAP_PRIVATE | libc::MAP_FIXED,
            file.as_raw_fd(),
            offset as libc::off_t,
        )
    };
    mapped_at(mapped).map(drop)
}

/// Puts a copy that belongs to no file in place of pages that the program writes to.
fn detach(start: usize, length: usize) -> io::Result<()> {
    // SAFETY: a mapping at a place of the kernel's choice touches none of ours.
    let copy = mapped_at(unsafe {
        libc::mmap(
            ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
            -1,
            0,
        )
    })?;
    // SAFETY: both ranges are mapped for their whole length, and the new one overlaps none. The only thread is here, and
    // between the copy and the move it writes to its stack alone. The move is one step.
    mapped_at(unsafe {
        ptr::copy_nonoverlapping(start as *const u8, copy.cast(), length);
        libc::mremap(
            copy,
            length,
            length,
            libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
            start as *mut libc::c_void,
        )
    })
    .map(drop)
}

fn mapped_at(address: *mut libc::c_void) -> io::Result<*mut libc::c_void> {
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_of_a_process_is_read_from_its_state() {
        let mut stat = String::from("7 (a) b) S");
        for number in 4..=52 {
            stat += &format!(" {number}");
        }
        let map = Map::parse(&stat).unwrap();
        assert_eq!(
            (map.start_code, map.end_code, map.start_stack),
            (26, 27, 28)
        );
        assert_eq!((map.start_data, map.end_data, map.start_brk), (45, 46, 47));
        assert_eq!((map.arg_start, map.env_end), (48, 51));
        assert_eq!(Map::parse("7 (a) S 4 5"), None);
    }

    #[test]
    fn another_file_is_never_mapped() {
        let other = File::open("/bin/sh").unwrap();
        let error = run_from(&other).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
