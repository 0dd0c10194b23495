//! Disks for a machine: one with Debian packages on it, as they are installed here, and empty ones.
//!
//! The packages are not fetched again: their files are the host's, so a machine runs the very programs that the host's tests run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::kernel::run;

/// What no program needs to run.
const UNUSED: [&str; 8] = [
    "/usr/share/doc/",
    "/usr/share/info/",
    "/usr/share/lintian/",
    "/usr/share/locale/",
    "/usr/share/man/",
    "/usr/share/bash-completion/",
    "/usr/share/zsh/",
    "/usr/lib/udev/hwdb.d/",
];

/// Directories that programs expect and that no package has, or that `cpio` would not find on a host with a different layout.
const DIRECTORIES: [&str; 14] = [
    "dev",
    "etc",
    "mnt",
    "opt",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr/bin",
    "usr/lib",
    "usr/lib64",
    "usr/sbin",
    "var/tmp",
];

/// Made by the packages' scripts, not among their files.
const GENERATED: [&str; 3] = ["/etc/alternatives", "/etc/passwd", "/etc/group"];

/// The packages with all that they depend on.
#[derive(Debug, Default)]
struct Installed {
    depends: BTreeMap<String, String>,
    providers: BTreeMap<String, String>,
}

/// The files of a disk to be.
#[derive(Debug)]
pub struct Debian {
    root: tempfile::TempDir,
}

impl Debian {
    /// The files of `packages` and of all that they depend on.
    ///
    /// # Errors
    ///
    /// A package is not installed, or its files cannot be read.
    pub fn with(packages: &[&str]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir_in(crate::kernel::cache_dir()?)?;
        let root = dir.path();
        for name in DIRECTORIES {
            fs::create_dir_all(root.join(name))?;
        }
        for name in ["bin", "lib", "lib64", "sbin"] {
            symlink(Path::new("usr").join(name), root.join(name))?;
        }
        symlink("/run", root.join("var/run"))?;
        let closure = Installed::read()?.closure(packages)?;
        copy(&files(&closure)?, root)?;
        run(Command::new("cp")
            .args(["-a", "--parents"])
            .args(GENERATED)
            .arg(root))?;
        alternatives(root)?;
        Ok(Self { root: dir })
    }

    /// Adds a copy of a file, with its mode.
    ///
    /// # Errors
    ///
    /// It cannot be copied.
    pub fn file(&self, path: &str, file: &Path) -> anyhow::Result<()> {
        let at = self.place(path)?;
        fs::copy(file, at).with_context(|| format!("copy {}", file.display()))?;
        Ok(())
    }

    /// Adds a text that can be run.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn script(&self, path: &str, content: &str) -> anyhow::Result<()> {
        let at = self.place(path)?;
        fs::write(&at, content)?;
        Ok(fs::set_permissions(at, fs::Permissions::from_mode(0o755))?)
    }

    fn place(&self, path: &str) -> anyhow::Result<PathBuf> {
        let at = self.root.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(at.parent().context("a file is in a directory")?)?;
        Ok(at)
    }

    /// Makes `image`, an ext4 file system with the files and room for `spare` MiB more.
    ///
    /// # Errors
    ///
    /// `mke2fs` fails.
    pub fn write(self, image: &Path, spare: u64) -> anyhow::Result<()> {
        let root = self.root.path();
        let used = run(Command::new("du").args(["-s", "--block-size=1M"]).arg(root))?;
        let used = used.split_whitespace().next().context("du tells a size")?;
        // What the file system keeps for itself is a few hundredths.
        let size = (used.parse::<u64>()? + spare) * 11 / 10;
        run(Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-m", "0", "-O", "^has_journal", "-d"])
            .arg(root)
            .arg(image)
            .arg(format!("{size}M")))?;
        Ok(())
    }
}

/// Makes `image`, an empty disk of `size` MiB.
///
/// # Errors
///
/// It cannot be made.
pub fn empty(image: &Path, size: u64) -> anyhow::Result<()> {
    let file = File::create(image).with_context(|| format!("create {}", image.display()))?;
    Ok(file.set_len(size << 20)?)
}

/// Makes `image`, a disk of `size` MiB with an empty ext4 file system that keeps a journal, as an installed machine has it.
///
/// # Errors
///
/// `mke2fs` fails.
pub fn formatted(image: &Path, size: u64) -> anyhow::Result<()> {
    empty(image, size)?;
    run(Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-m", "0"])
        .arg(image))?;
    Ok(())
}

impl Installed {
    fn read() -> anyhow::Result<Self> {
        let format = "${db:Status-Abbrev}\t${Package}\t${Provides}\t${Pre-Depends},${Depends}\n";
        Ok(Self::parse(&run(
            Command::new("dpkg-query").args(["-W", "-f", format])
        )?))
    }

    /// Lines of status, package, what it provides, what it depends on.
    fn parse(text: &str) -> Self {
        let mut installed = Self::default();
        for line in text.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let &[status, package, provides, depends] = &*fields else {
                continue;
            };
            if !status.starts_with("ii") {
                continue;
            }
            for provided in provides.split(',').map(name) {
                installed
                    .providers
                    .insert(provided.to_owned(), package.to_owned());
            }
            installed
                .depends
                .insert(package.to_owned(), depends.to_owned());
        }
        installed
    }

    /// The installed package that is this, or provides it.
    fn find(&self, wanted: &str) -> Option<&str> {
        match self.depends.get_key_value(wanted) {
            Some((package, _)) => Some(package),
            None => self.providers.get(wanted).map(String::as_str),
        }
    }

    fn closure(&self, packages: &[&str]) -> anyhow::Result<BTreeSet<String>> {
        let mut closure = BTreeSet::new();
        let mut next: Vec<String> = packages.iter().map(ToString::to_string).collect();
        while let Some(wanted) = next.pop() {
            let package = wanted
                .split('|')
                .find_map(|one| self.find(name(one)))
                .with_context(|| format!("{wanted} is not installed: run scripts/deps test"))?;
            if closure.insert(package.to_owned()) {
                let depends = self.depends[package].split(',').map(str::trim);
                next.extend(depends.filter(|one| !one.is_empty()).map(str::to_owned));
            }
        }
        Ok(closure)
    }
}

/// The name in `name:architecture (>= version)`.
fn name(dependency: &str) -> &str {
    let end = dependency.trim().find([' ', ':', '(']);
    &dependency.trim()[..end.unwrap_or(dependency.trim().len())]
}

/// What is there of the files of these packages.
fn files(packages: &BTreeSet<String>) -> anyhow::Result<Vec<PathBuf>> {
    let list = run(Command::new("dpkg-query").arg("-L").args(packages))?;
    let files: BTreeSet<&str> = list
        .lines()
        .filter(|line| {
            line.starts_with('/') && !UNUSED.iter().any(|unused| line.starts_with(unused))
        })
        .collect();
    Ok(files
        .into_iter()
        .map(PathBuf::from)
        .filter(|path| path.symlink_metadata().is_ok_and(|file| !file.is_dir()))
        .collect())
}

/// Makes the links to `/etc/alternatives`, such as `/usr/bin/awk`, to programs that are there. The file that describes an
/// alternative has its link in the second line, then the name and the link of each that follows it, up to an empty line.
fn alternatives(root: &Path) -> anyhow::Result<()> {
    let below = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    for entry in fs::read_dir("/var/lib/dpkg/alternatives")? {
        let text = fs::read_to_string(entry?.path())?;
        let described = text.lines().take_while(|line| !line.is_empty());
        for link in described.skip(1).step_by(2) {
            // Of other packages, or without the file: nobody here needs it.
            let (Ok(target), Ok(file)) = (fs::read_link(link), fs::canonicalize(link)) else {
                continue;
            };
            let at = below(Path::new(link));
            if below(&file).exists() && at.symlink_metadata().is_err() {
                symlink(target, &at).with_context(|| format!("link {}", at.display()))?;
            }
        }
    }
    Ok(())
}

fn copy(files: &[PathBuf], root: &Path) -> anyhow::Result<()> {
    let mut cpio = Command::new("cpio")
        .args(["--pass-through", "--make-directories", "--quiet"])
        .arg(root)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start cpio")?;
    let mut list = cpio.stdin.take().expect("it is piped");
    for file in files {
        writeln!(list, "{}", file.display())?;
    }
    drop(list);
    let output = cpio.wait_with_output()?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cpio: {}\n{words}", output.status);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_come_with_what_they_depend_on() {
        let installed = Installed::parse(
            "ii \tpodman\t\t,libc6 (>= 2.34), crun | runc (>= 1.0), mail-agent\n\
             ii \tlibc6\t\t,\n\
             rc \tcrun\t\t,\n\
             ii \trunc\t\tlibc6:any,\n\
             ii \tpostfix\tmail-agent (= 1), other\t,\n\
             ii \tunrelated\t\t,\n",
        );
        let closure = installed.closure(&["podman"]).unwrap();
        let names: Vec<&str> = closure.iter().map(String::as_str).collect();
        assert_eq!(names, ["libc6", "podman", "postfix", "runc"]);
        let missing = installed.closure(&["crun"]).unwrap_err().to_string();
        assert!(missing.contains("crun is not installed"), "{missing}");
    }
}
