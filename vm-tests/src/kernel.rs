//! Debian's cloud kernel: the package is fetched once and unpacked below `target/vm-tests`, not installed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use rustix::fs::{FlockOperation, flock};

/// The package that always depends on the newest cloud kernel.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// What Knarr needs that Debian builds as modules. What these depend on is found by [`Kernel::modules`].
pub const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "overlay",
    "unix_diag",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "raw_diag",
    "af_packet_diag",
    "netlink_diag",
    "veth",
    "bridge",
    "br_netfilter",
    "vxlan",
    "dummy",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nf_tables",
    "nft_chain_nat",
    "nft_ct",
    "nft_fib_inet",
    "nft_hash",
    "nft_limit",
    "nft_log",
    "nft_masq",
    "nft_nat",
    "nft_numgen",
    "nft_objref",
    "nft_redir",
    "nft_reject_inet",
];

/// A kernel, unpacked.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    modules: BTreeMap<String, PathBuf>,
}

impl Kernel {
    /// Fetches the kernel unless it is there already. Several processes may do this at once.
    ///
    /// # Errors
    ///
    /// `apt-get` cannot fetch it, or it is not what we think.
    pub fn fetch() -> anyhow::Result<Self> {
        let cache = cache_dir()?;
        let lock = File::create(cache.join("lock"))?;
        flock(&lock, FlockOperation::LockExclusive).context("lock the cache")?;
        let root = cache.join("kernel");
        if !root.join("complete").exists() {
            if root.exists() {
                fs::remove_dir_all(&root)?;
            }
            fs::create_dir(&root)?;
            let package = newest_package()?;
            run(Command::new("apt-get")
                .args(["download", "-q", &package])
                .current_dir(&root))
            .context("fetch the kernel (is `apt-get update` done?)")?;
            let file = only(&root, |name| name.ends_with(".deb"))?;
            run(Command::new("dpkg").arg("-x").arg(&file).arg(&root))?;
            fs::remove_file(file)?;
            File::create(root.join("complete"))?;
        }
        let image = only(&root.join("boot"), |name| name.starts_with("vmlinuz-"))?;
        let mut modules = BTreeMap::new();
        find_modules(&root.join("lib/modules"), &mut modules)?;
        Ok(Self { image, modules })
    }

    /// The files of these modules and of all that they depend on, in the order to load them.
    ///
    /// # Errors
    ///
    /// The kernel has no such module.
    pub fn modules(&self, wanted: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in wanted {
            self.add(name, &mut seen, &mut order)?;
        }
        Ok(order)
    }

    fn add(
        &self,
        name: &str,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<PathBuf>,
    ) -> anyhow::Result<()> {
        if !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let path = self
            .modules
            .get(name)
            .with_context(|| format!("the kernel has no module {name}"))?;
        for dependency in dependencies(&fs::read(path)?) {
            self.add(&dependency, seen, order)?;
        }
        order.push(path.clone());
        Ok(())
    }
}

/// Where things are kept between runs.
pub(crate) fn cache_dir() -> anyhow::Result<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/vm-tests");
    fs::create_dir_all(&dir)?;
    Ok(dir.canonicalize()?)
}

fn newest_package() -> anyhow::Result<String> {
    let output = run(Command::new("apt-cache").args(["depends", META_PACKAGE]))?;
    output
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .map(str::to_owned)
        .with_context(|| format!("{META_PACKAGE} depends on nothing: {output:?}"))
}

/// The names after `depends=` in a module's `.modinfo`: texts that end with a NUL.
fn dependencies(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(start) = module.windows(key.len()).position(|text| text == key) else {
        return Vec::new();
    };
    let list = &module[start + key.len()..];
    let end = list.iter().position(|b| *b == 0).unwrap_or(list.len());
    String::from_utf8_lossy(&list[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(module_name)
        .collect()
}

/// `-` and `_` are the same in the names of modules.
fn module_name(name: &str) -> String {
    name.replace('-', "_")
}

fn find_modules(dir: &Path, modules: &mut BTreeMap<String, PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            find_modules(&path, modules)?;
        } else if path.extension().is_some_and(|extension| extension == "ko") {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            modules.insert(module_name(&stem), path);
        }
    }
    Ok(())
}

fn only(dir: &Path, fits: impl Fn(&str) -> bool) -> anyhow::Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let entry = entry?;
        if fits(&entry.file_name().to_string_lossy()) {
            found.push(entry.path());
        }
    }
    match &*found {
        [path] => Ok(path.clone()),
        _ => bail!("one file was expected in {}, not {found:?}", dir.display()),
    }
}

pub(crate) fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dependencies_of_a_module_are_read_from_its_information() {
        let module = b"...\0license=GPL\0depends=nf-nat,nf_tables\0retpoline=Y\0";
        assert_eq!(dependencies(module), ["nf_nat", "nf_tables"]);
        assert_eq!(dependencies(b"\0depends=\0"), [""; 0]);
        assert_eq!(dependencies(b"no module"), [""; 0]);
    }
}
