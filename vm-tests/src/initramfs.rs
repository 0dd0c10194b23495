//! The files that a machine starts with: a cpio archive in the "newc" format.
//!
//! Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::kernel::{self, Kernel};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// The files, by path without the leading slash.
#[derive(Clone, Debug, Default)]
pub struct Initramfs(BTreeMap<String, Node>);

#[derive(Clone, Debug)]
struct Node {
    mode: u32,
    content: Vec<u8>,
    /// Of a device.
    number: (u32, u32),
}

impl Initramfs {
    /// An archive with busybox as the first process, which loads the modules, mounts the usual file systems (cgroup v2 alone at
    /// `/sys/fs/cgroup`) and runs `scenario`.
    ///
    /// # Errors
    ///
    /// Busybox is not installed, or the kernel lacks a module.
    pub fn new(kernel: &Kernel, scenario: &str) -> anyhow::Result<Self> {
        let mut files = Self::default();
        files.node("dev/console", CHARACTER_DEVICE | 0o600, Vec::new(), (5, 1));
        files.program("/bin/busybox", &crate::installed("busybox")?)?;
        files.script("/init", include_str!("../guest/init"));
        files.script("/stage2", include_str!("../guest/stage2"));
        files.text("/report", include_str!("../guest/report"));
        files.script("/scenario", scenario);
        let mut order = String::new();
        for module in kernel.modules(kernel::MODULES)? {
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            order.push_str(&format!("/lib/modules/{name}\n"));
            files.file(&format!("/lib/modules/{name}"), &module)?;
        }
        files.text("/lib/modules/order", &order);
        Ok(files)
    }

    /// Adds a text file.
    pub fn text(&mut self, path: &str, content: &str) {
        self.node(path, FILE | 0o644, content.into(), (0, 0));
    }

    /// Adds a text that can be run.
    pub fn script(&mut self, path: &str, content: &str) {
        self.node(path, FILE | 0o755, content.into(), (0, 0));
    }

    /// Adds content.
    pub fn data(&mut self, path: &str, content: Vec<u8>) {
        self.node(path, FILE | 0o644, content, (0, 0));
    }

    /// Adds a copy of a file, with its mode.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn file(&mut self, path: &str, file: &Path) -> anyhow::Result<()> {
        let content = fs::read(file).with_context(|| format!("read {}", file.display()))?;
        let mode = fs::metadata(file)?.permissions().mode() & 0o777;
        self.node(path, FILE | mode, content, (0, 0));
        Ok(())
    }

    /// Adds a program and the shared libraries that it needs, its loader among them, where it looks for them.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn program(&mut self, path: &str, file: &Path) -> anyhow::Result<()> {
        self.file(path, file)?;
        for library in libraries(file)? {
            let name = library.to_string_lossy().into_owned();
            self.file(&name, &library)?;
        }
        Ok(())
    }

    fn node(&mut self, path: &str, mode: u32, content: Vec<u8>, number: (u32, u32)) {
        let path = path.trim_start_matches('/');
        for (end, _) in path.match_indices('/') {
            let dir = Node {
                mode: DIRECTORY | 0o755,
                content: Vec::new(),
                number: (0, 0),
            };
            self.0.entry(path[..end].to_owned()).or_insert(dir);
        }
        let node = Node {
            mode,
            content,
            number,
        };
        self.0.insert(path.to_owned(), node);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.node(path, LINK | 0o777, target.into(), (0, 0));
    }

    /// The archive. Names are in order, so each directory is before what is in it.
    pub fn archive(&self) -> Vec<u8> {
        let mut archive = Vec::new();
        for (inode, (path, node)) in self.0.iter().enumerate() {
            append(&mut archive, inode + 1, path, node);
        }
        let end = Node {
            mode: 0,
            content: Vec::new(),
            number: (0, 0),
        };
        append(&mut archive, 0, "TRAILER!!!", &end);
        archive
    }
}

fn append(archive: &mut Vec<u8>, inode: usize, path: &str, node: &Node) {
    let size = node.content.len();
    let (major, minor) = node.number;
    let name_size = path.len() + 1;
    let header = format!(
        "070701{inode:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}{:08x}{:08x}{major:08x}{minor:08x}{name_size:08x}{:08x}",
        node.mode, 0, 0, 1, 0, 0, 0, 0
    );
    archive.extend(header.as_bytes());
    archive.extend(path.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(&node.content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// As the loader itself finds them; none for a static program.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("run ldd")?;
    // It fails for a static program.
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut libraries = Vec::new();
    for line in text.lines() {
        anyhow::ensure!(!line.contains("not found"), "{}: {line}", program.display());
        let path = line
            .split_whitespace()
            .find(|word| word.starts_with('/') && !word.ends_with(':'));
        libraries.extend(path.map(PathBuf::from));
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_what_cpio_reads() {
        let mut files = Initramfs::default();
        files.text("/etc/motd", "hello");
        files.script("/init", "#!/bin/sh\n");
        files.link("/bin/sh", "busybox");
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("archive"), files.archive()).unwrap();
        let input = fs::File::open(dir.path().join("archive")).unwrap();
        let output = Command::new("cpio")
            .arg("-tv")
            .stdin(input)
            .output()
            .unwrap();
        let listed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{output:?}");
        for part in ["-rw-r--r--", "etc/motd", "-rwxr-xr-x", "bin/sh -> busybox"] {
            assert!(listed.contains(part), "{part} in\n{listed}");
        }
    }

    #[test]
    fn a_program_comes_with_its_loader() {
        let libraries = libraries(Path::new("/bin/ls")).unwrap();
        let names = format!("{libraries:?}");
        assert!(
            names.contains("libc.so.6") && names.contains("ld-linux"),
            "{names}"
        );
        assert_eq!(
            super::libraries(Path::new("/bin/busybox")).unwrap(),
            [""; 0].map(PathBuf::from)
        );
    }
}
