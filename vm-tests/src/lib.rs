//! Boots whole machines under QEMU and runs Knarr in them: for what the host may not give, above all pure cgroup v2.
//!
//! A machine is Debian's cloud kernel ([`kernel`]) and one archive of files ([`initramfs`]): busybox, the programs under test with
//! the libraries they need, and a shell script with the scenario (`guest/`). It has no network but what it makes itself, and no disk
//! but those it is given ([`disk`]).
//! The scenario reports on the console, one line each, which [`machine`] reads:
//!
//! ```text
//! KNARR-VM ok <what was checked>
//! KNARR-VM failed <what was checked>: <why>
//! KNARR-VM acknowledged <what the program under test has answered for> end
//! KNARR-VM cut
//! KNARR-VM done
//! ```

#![forbid(unsafe_code)]

pub mod disk;
pub mod initramfs;
pub mod kernel;
pub mod machine;

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

/// The programs under test: `$KNARR_BIN_DIR`, else the release build.
///
/// # Errors
///
/// It was not built.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let dir = std::env::var_os("KNARR_BIN_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release"),
        PathBuf::from,
    );
    let path = dir.join(name);
    ensure!(
        path.exists(),
        "{} is missing: run scripts/build first",
        path.display()
    );
    Ok(path)
}

/// A program that Debian installs.
///
/// # Errors
///
/// It is not installed.
pub fn installed(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|path| path.exists())
        .with_context(|| format!("{name} is not installed: run scripts/deps test"))
}
