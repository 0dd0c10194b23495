//! `knarr up` with the example on a machine with pure cgroup v2.

use std::time::Duration;

use knarr_hello::Image;
use knarr_vm_tests::initramfs::Initramfs;
use knarr_vm_tests::kernel::Kernel;
use knarr_vm_tests::machine::{self, Hardware};
use knarr_vm_tests::{installed, program};

#[test]
fn the_example_runs_with_its_limits_on_pure_cgroup_v2() -> anyhow::Result<()> {
    let kernel = Kernel::fetch()?;
    let mut files = Initramfs::new(&kernel, include_str!("../guest/up"))?;
    for name in ["knarr", "knarr-shim", "knarr-oci"] {
        files.program(&format!("/usr/local/bin/{name}"), &program(name)?)?;
    }
    files.program("/usr/bin/kubectl", &installed("kubectl")?)?;
    // Not busybox's: a static program cannot load what looks up names, and breaks even where there is none to look up.
    files.program("/usr/bin/curl", &installed("curl")?)?;
    // The one tool that Knarr may run.
    files.program("/usr/sbin/nft", &installed("nft")?)?;
    files.file("/hello-v1.tar", &program("hello-v1.tar")?)?;
    files.data("/busybox.tar", busybox()?.oci_layout()?);
    files.text("/hello.yaml", include_str!("../../examples/hello.yaml"));
    files.text("/greedy.yaml", include_str!("../guest/greedy.yaml"));
    let hardware = Hardware {
        memory: 1536,
        processors: 2,
        deadline: Duration::from_secs(600),
    };
    let passed = machine::run(&kernel, &files, hardware)?;
    println!("{}", passed.join("\n"));
    assert_eq!(passed.len(), 23, "{passed:#?}");
    Ok(())
}

fn busybox() -> anyhow::Result<Image> {
    let mut image = Image::new("knarr.local/busybox:1")
        .directory("tmp", 0o1777)
        .program("bin/busybox", &installed("busybox")?)?;
    for applet in ["sh", "sleep", "tail", "cat"] {
        image = image.link(&format!("bin/{applet}"), "busybox");
    }
    image.env = vec!["PATH=/bin".to_owned()];
    Ok(image)
}
