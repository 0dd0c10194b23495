//! The OCI runtime on a machine with pure cgroup v2.

use std::path::PathBuf;
use std::time::Duration;

use knarr_vm_tests::initramfs::Initramfs;
use knarr_vm_tests::kernel::Kernel;
use knarr_vm_tests::machine::{self, Hardware};
use knarr_vm_tests::program;

#[test]
fn containers_run_with_their_limits_on_pure_cgroup_v2() -> anyhow::Result<()> {
    // Another runtime may be tried: what fails there too is suspect.
    let runtime = match std::env::var_os("KNARR_VM_OCI_RUNTIME") {
        Some(path) => PathBuf::from(path),
        None => program("knarr-oci")?,
    };
    let kernel = Kernel::fetch()?;
    let mut files = Initramfs::new(&kernel, include_str!("../guest/oci"))?;
    files.program("/usr/local/bin/runtime", &runtime)?;
    files.text("/config.json", include_str!("../guest/config.json"));
    let hardware = Hardware {
        memory: 512,
        processors: 2,
        deadline: Duration::from_secs(180),
    };
    let passed = machine::run(&kernel, &files, hardware)?;
    println!("{}", passed.join("\n"));
    assert_eq!(passed.len(), 14, "{passed:#?}");
    Ok(())
}
