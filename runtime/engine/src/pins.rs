//! What a pod's containers share and nobody has to sleep for: namespaces pinned by bind mounts, `/dev/shm`, files of `/etc`.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::spec::Surroundings;
use crate::types::{DnsConfig, NamespaceMode, SandboxConfig};

/// The size of `/dev/shm`, Docker's and containerd's.
const SHM: &str = "mode=1777,size=65536k";

/// What could not be made or removed.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path}", path = path.display())]
pub struct PinError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed<E: Into<io::Error>>(what: &'static str, path: &Path) -> impl FnOnce(E) -> PinError {
    let path = path.to_owned();
    move |source| PinError {
        what,
        path,
        source: source.into(),
    }
}

/// The paths in a sandbox's run directory.
#[derive(Clone, Debug)]
pub struct RunDir(pub PathBuf);

impl RunDir {
    /// The pinned network namespace.
    pub fn netns(&self) -> PathBuf {
        self.0.join("net")
    }
    /// The shim's socket.
    pub fn socket(&self) -> PathBuf {
        self.0.join("shim.sock")
    }
    /// The shim's own log.
    pub fn shim_log(&self) -> PathBuf {
        self.0.join("shim.log")
    }
    fn ipc(&self) -> PathBuf {
        self.0.join("ipc")
    }
    fn uts(&self) -> PathBuf {
        self.0.join("uts")
    }
    fn pid(&self) -> PathBuf {
        self.0.join("pid")
    }
    fn shm(&self) -> PathBuf {
        self.0.join("shm")
    }
    fn resolv_conf(&self) -> PathBuf {
        self.0.join("resolv.conf")
    }
    fn hostname(&self) -> PathBuf {
        self.0.join("hostname")
    }

    /// What the containers of this sandbox get.
    pub fn surroundings(&self, config: &SandboxConfig) -> Surroundings {
        let pod =
            |mode: NamespaceMode, path: PathBuf| (mode != NamespaceMode::Node).then_some(path);
        let namespaces = config.namespaces;
        Surroundings {
            network: pod(namespaces.network, self.netns()),
            ipc: pod(namespaces.ipc, self.ipc()),
            // The host name belongs to the network, as in every other runtime.
            uts: pod(namespaces.network, self.uts()),
            pid: (namespaces.pid == NamespaceMode::Pod).then(|| self.pid()),
            shm: if namespaces.ipc == NamespaceMode::Node {
                "/dev/shm".into()
            } else {
                self.shm()
            },
            resolv_conf: config.dns.as_ref().map(|_| self.resolv_conf()),
            hostname: self.hostname(),
        }
    }

    /// Makes all but the network namespace, on a thread that ends in the new namespaces.
    pub fn make(&self, config: &SandboxConfig) -> Result<(), PinError> {
        let namespaces = config.namespaces;
        if let Some(dns) = &config.dns {
            write(&self.resolv_conf(), &resolv_conf(dns))?;
        }
        let hostname = match config.hostname.as_str() {
            "" => nix::unistd::gethostname()
                .map_err(failed("tell the host name for", &self.hostname()))?
                .to_string_lossy()
                .into_owned(),
            own => own.to_owned(),
        };
        write(&self.hostname(), &format!("{hostname}\n"))?;
        if namespaces.ipc != NamespaceMode::Node {
            let shm = self.shm();
            fs::create_dir_all(&shm).map_err(failed("create", &shm))?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("shm"), &shm, Some("tmpfs"), flags, Some(SHM))
                .map_err(failed("mount", &shm))?;
        }
        let mut flags = CloneFlags::empty();
        let mut pins = Vec::new();
        if namespaces.ipc != NamespaceMode::Node {
            flags |= CloneFlags::CLONE_NEWIPC;
            pins.push(("ipc", self.ipc()));
        }
        if namespaces.network != NamespaceMode::Node {
            flags |= CloneFlags::CLONE_NEWUTS;
            pins.push(("uts", self.uts()));
        }
        if pins.is_empty() {
            return Ok(());
        }
        let hostname = config.hostname.clone();
        let run_dir = self.0.clone();
        let thread = std::thread::Builder::new()
            .name("pin".to_owned())
            .spawn(move || pin(flags, &pins, &hostname))
            .map_err(failed("start a thread for", &self.0))?;
        thread.join().map_err(|_| {
            failed("pin the namespaces of", &run_dir)(io::Error::other("the thread panicked"))
        })?
    }

    /// Pins the PID namespace that the containers share.
    pub fn pin_pids(&self, namespace: &OwnedFd) -> Result<(), PinError> {
        let source = PathBuf::from(format!("/proc/self/fd/{}", namespace.as_raw_fd()));
        pin_one(&source, &self.pid())
    }

    /// Takes all mounts of the sandbox away; what is not there is fine.
    pub fn unmount(&self) -> Result<(), PinError> {
        for path in [self.ipc(), self.uts(), self.shm(), self.netns(), self.pid()] {
            loop {
                match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                    // Once more: a crash between two attempts may have mounted twice.
                    Ok(()) => {}
                    Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => break,
                    Err(error) => return Err(failed("unmount", &path)(error)),
                }
            }
        }
        Ok(())
    }

    /// Removes the directory; what is not there is fine. What is mounted must be unmounted first.
    pub fn remove(&self) -> Result<(), PinError> {
        knarr_tree::remove(&self.0).map_err(failed("remove", &self.0))
    }
}

fn pin(flags: CloneFlags, pins: &[(&str, PathBuf)], hostname: &str) -> Result<(), PinError> {
    let own = Path::new("/proc/thread-self/ns");
    unshare(flags).map_err(failed("unshare for", own))?;
    if flags.contains(CloneFlags::CLONE_NEWUTS) && !hostname.is_empty() {
        nix::unistd::sethostname(hostname).map_err(failed("set the host name of", own))?;
    }
    for (kind, path) in pins {
        pin_one(&own.join(kind), path)?;
    }
    Ok(())
}

fn pin_one(namespace: &Path, path: &Path) -> Result<(), PinError> {
    fs::File::create(path).map_err(failed("create", path))?;
    mount(
        Some(namespace),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .map_err(failed("pin a namespace on", path))
}

fn write(path: &Path, text: &str) -> Result<(), PinError> {
    fs::write(path, text).map_err(failed("write", path))
}

/// resolv.conf(5).
fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_what_the_kubelet_writes() {
        let dns = DnsConfig {
            servers: vec!["10.43.0.10".into()],
            searches: vec![
                "default.svc.cluster.local".into(),
                "svc.cluster.local".into(),
            ],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(&dns),
            "search default.svc.cluster.local svc.cluster.local\nnameserver 10.43.0.10\noptions ndots:5\n"
        );
    }
}
