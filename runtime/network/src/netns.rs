//! Network namespaces and the threads that may enter them.
//!
//! A thread's network namespace decides what its sockets and its `/proc/sys/net` mean, so a thread that changes it is never
//! one of the caller's: every function here starts a thread and lets it end.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::oneshot;

/// Why a namespace could not be made, entered or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// No thread could be started.
    #[error("start a thread")]
    Spawn(#[source] io::Error),
    /// The thread panicked.
    #[error("the thread ended early")]
    Ended,
    /// The kernel refused a new namespace.
    #[error("make a network namespace")]
    Unshare(#[source] io::Error),
    /// The file to pin the namespace on could not be made.
    #[error("create {path}")]
    Create {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The namespace could not be pinned.
    #[error("mount the network namespace on {path}")]
    Pin {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The pin could not be removed.
    #[error("remove the pin {path}")]
    Unpin {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The namespace could not be entered.
    #[error("enter the network namespace {path}")]
    Enter {
        /// Its pin.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Runs `work` on a thread of its own, in the caller's namespaces, which `work` may change.
pub(crate) async fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NetnsError> {
    let (sender, receiver) = oneshot::channel();
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // Nobody waits any more if the caller's future was dropped; the work is done all the same.
            let _ = sender.send(work());
        })
        .map_err(NetnsError::Spawn)?;
    receiver.await.map_err(|_| NetnsError::Ended)
}

/// Runs `work` inside the network namespace pinned on `pin`; what it opens (sockets) stays in there.
///
/// # Errors
///
/// The namespace could not be entered, or `work` panicked.
pub async fn run_in<T: Send + 'static>(
    pin: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NetnsError> {
    let pin = pin.to_owned();
    on_thread("in-netns", move || {
        let enter = |source| NetnsError::Enter {
            path: pin.clone(),
            source,
        };
        let file = fs::File::open(&pin).map_err(enter)?;
        setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| enter(errno.into()))?;
        Ok(work())
    })
    .await?
}

/// Gives the calling thread a new network namespace, for good, and pins it on `pin`.
///
/// The thread must end soon; no thread of an asynchronous runtime may call this.
pub(crate) fn unshare_pinned(pin: &Path) -> Result<(), NetnsError> {
    let create = |source| NetnsError::Create {
        path: pin.to_owned(),
        source,
    };
    if let Some(dir) = pin.parent() {
        fs::create_dir_all(dir).map_err(create)?;
    }
    fs::File::create(pin).map_err(create)?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| NetnsError::Unshare(errno.into()))?;
    mount(
        Some("/proc/thread-self/ns/net"),
        pin,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .map_err(|errno| NetnsError::Pin {
        path: pin.to_owned(),
        source: errno.into(),
    })
}

/// Removes a pin, also one that was never mounted or does not exist.
pub(crate) fn unpin(pin: &Path) -> Result<(), NetnsError> {
    let unpin = |source| NetnsError::Unpin {
        path: pin.to_owned(),
        source,
    };
    loop {
        match umount2(pin, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            // Not (or no longer) a mount point.
            Err(Errno::EINVAL) => break,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            Err(errno) => return Err(unpin(errno.into())),
        }
    }
    match fs::remove_file(pin) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(unpin(err)),
        _ => Ok(()),
    }
}
