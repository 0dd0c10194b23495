//! `knarr up` on a machine that keeps its disk: what a reboot and a loss of power leave.

use std::path::Path;
use std::time::Duration;

use knarr_hello::Image;
use knarr_vm_tests::disk;
use knarr_vm_tests::initramfs::Initramfs;
use knarr_vm_tests::kernel::Kernel;
use knarr_vm_tests::machine::{self, Hardware};
use knarr_vm_tests::{installed, program};

const HARDWARE: Hardware = Hardware {
    memory: 1536,
    processors: 2,
    deadline: Duration::from_secs(600),
};

/// Sets the moment at which the power is cut, in milliseconds; a failing test prints the one it had.
const MOMENT: &str = "KNARR_VM_CUT_MS";

#[test]
fn pods_come_back_from_a_reboot_with_their_ports_and_volumes() -> anyhow::Result<()> {
    let kernel = Kernel::fetch()?;
    let files = files(
        &kernel,
        concat!(
            include_str!("../guest/persistent"),
            include_str!("../guest/reboot")
        ),
    )?;
    let dir = tempfile::tempdir()?;
    let disk = disk(dir.path())?;
    let first = machine::run_with_disks(&kernel, &files, &[&disk], HARDWARE)?;
    assert_eq!(first.len(), 6, "{first:#?}");
    let second = machine::run_with_disks(&kernel, &files, &[&disk], HARDWARE)?;
    assert_eq!(second.len(), 16, "{second:#?}");
    Ok(())
}

#[test]
fn a_loss_of_power_takes_nothing_that_was_acknowledged() -> anyhow::Result<()> {
    let kernel = Kernel::fetch()?;
    let mut files = files(
        &kernel,
        concat!(
            include_str!("../guest/persistent"),
            include_str!("../guest/plug")
        ),
    )?;
    files.file("/hello-v1.tar", &program("hello-v1.tar")?)?;
    let dir = tempfile::tempdir()?;
    let disk = disk(dir.path())?;
    let moment = moment()?;
    println!("{MOMENT}={}", moment.as_millis());
    let report = machine::run_and_cut(&kernel, &files, &[&disk], HARDWARE, moment)?;
    assert_eq!(report.passed.len(), 5, "{report:#?}");
    assert!(report.acknowledged.len() >= 5, "{report:#?}");
    files.text("/acknowledged", &(report.acknowledged.join("\n") + "\n"));
    let second = machine::run_with_disks(&kernel, &files, &[&disk], HARDWARE)?;
    assert_eq!(second.len(), 15, "{second:#?}");
    Ok(())
}

/// As given, else another one each time.
fn moment() -> anyhow::Result<Duration> {
    let millis = match std::env::var(MOMENT) {
        Ok(text) => text.parse()?,
        Err(_) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
            u64::from(now.subsec_micros()) % 8000
        }
    };
    Ok(Duration::from_millis(millis))
}

/// What both boots have.
fn files(kernel: &Kernel, scenario: &str) -> anyhow::Result<Initramfs> {
    let mut files = Initramfs::new(kernel, scenario)?;
    for name in ["knarr", "knarr-shim", "knarr-oci"] {
        files.program(&format!("/usr/local/bin/{name}"), &program(name)?)?;
    }
    files.program("/usr/bin/kubectl", &installed("kubectl")?)?;
    // Not busybox's: a static program cannot load what looks up names, and breaks even where there is none to look up.
    files.program("/usr/bin/curl", &installed("curl")?)?;
    // The one tool that Knarr may run.
    files.program("/usr/sbin/nft", &installed("nft")?)?;
    files.data("/busybox.tar", busybox()?.oci_layout()?);
    files.text("/web.yaml", include_str!("../guest/web.yaml"));
    Ok(files)
}

fn disk(dir: &Path) -> anyhow::Result<std::path::PathBuf> {
    let path = dir.join("disk.img");
    disk::formatted(&path, 512)?;
    Ok(path)
}

fn busybox() -> anyhow::Result<Image> {
    let mut image = Image::new("knarr.local/busybox:1")
        .directory("tmp", 0o1777)
        .program("bin/busybox", &installed("busybox")?)?;
    for applet in ["sh", "sleep", "cat", "wc", "httpd"] {
        image = image.link(&format!("bin/{applet}"), "busybox");
    }
    image.env = vec!["PATH=/bin".to_owned()];
    Ok(image)
}
