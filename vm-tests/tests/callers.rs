//! Podman, containerd and Buildah on a machine with pure cgroup v2: the suite of `runtime/oci/tests/callers`, in the same program.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use knarr_vm_tests::disk::{self, Debian};
use knarr_vm_tests::initramfs::Initramfs;
use knarr_vm_tests::kernel::Kernel;
use knarr_vm_tests::machine::{self, Hardware};
use knarr_vm_tests::program;
use serde_json::Value;

/// The callers, what the suite starts them with, and the system below.
const PACKAGES: [&str; 23] = [
    "podman",
    "buildah",
    "containerd",
    "catatonit",
    "criu",
    "crun",
    "runc",
    "busybox-static",
    "coreutils",
    "dbus",
    "dash",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "iproute2",
    "iptables",
    "mawk",
    "mount",
    "sed",
    "systemd",
    "tar",
    "util-linux",
];

#[test]
fn callers_run_containers_on_pure_cgroup_v2() -> anyhow::Result<()> {
    let kernel = Kernel::fetch()?;
    let files = Initramfs::new(&kernel, include_str!("../guest/disk"))?;
    // Another runtime may be tried: what fails there too is suspect.
    let runtime = match std::env::var_os("KNARR_VM_OCI_RUNTIME") {
        Some(path) => PathBuf::from(path),
        None => program("knarr-oci")?,
    };
    let debian = Debian::with(&PACKAGES)?;
    let name = runtime.file_name().context("a program has a name")?;
    let path = Path::new("/usr/local/bin").join(name);
    let path = path.to_str().context("the name is text")?;
    debian.file(path, &runtime)?;
    debian.script("/machine/runtime", &format!("export OCI_RUNTIME={path}\n"))?;
    let suite = suite()?;
    debian.file("/machine/callers", &suite)?;
    for (name, script) in [
        ("report", include_str!("../guest/report")),
        ("first", include_str!("../guest/callers")),
        ("podman", include_str!("../guest/podman")),
        ("checkpoint", include_str!("../guest/checkpoint")),
        ("containerd.toml", include_str!("../guest/containerd.toml")),
        ("users", include_str!("../guest/users")),
        ("limits", include_str!("../guest/limits")),
        ("systemd", include_str!("../guest/systemd")),
    ] {
        debian.script(&format!("/machine/{name}"), script)?;
    }
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("debian.img");
    debian.write(&image, 200)?;
    let spare = dir.path().join("spare.img");
    disk::empty(&spare, 64)?;
    let hardware = Hardware {
        memory: 2048,
        processors: 2,
        deadline: Duration::from_secs(1700),
    };
    let passed = machine::run_with_disks(&kernel, &files, &[&image, &spare], hardware)?;
    println!("{}", passed.join("\n"));
    // The names of the suite's tests have a module; what the scripts check has none.
    let (tests, checks): (Vec<&str>, Vec<&str>) = passed
        .iter()
        .map(String::as_str)
        .partition(|name| name.contains("::"));
    assert_eq!(tests.len(), tests_of(&suite)?, "{passed:#?}");
    assert_eq!(checks.len(), 40, "{passed:#?}");
    Ok(())
}

/// The program of the suite, built as it is for the host: with the profile of this test and the features of the whole workspace,
/// so that nothing is built twice.
fn suite() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let own = std::env::current_exe().context("find this program")?;
    let output = Command::new(cargo)
        .args(["test", "--workspace", "--test", "suite", "--no-run"])
        .args(["--profile", &profile(&own)?])
        .args(["--locked", "--message-format=json-render-diagnostics"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output()
        .context("run cargo")?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}\n{words}", output.status);
    let messages = String::from_utf8(output.stdout)?;
    executable(&messages).with_context(|| format!("no program of the suite in {messages}"))
}

/// The profile of a test program, by its place: `target/PROFILE/deps/NAME`.
fn profile(program: &Path) -> anyhow::Result<String> {
    let directory = program.ancestors().nth(2).and_then(Path::file_name);
    let name = directory
        .and_then(OsStr::to_str)
        .with_context(|| format!("no profile in {}", program.display()))?;
    // The one profile whose directory has another name than it has itself.
    Ok(if name == "debug" { "dev" } else { name }.to_owned())
}

/// How many tests of the callers the program has.
fn tests_of(suite: &Path) -> anyhow::Result<usize> {
    let output = Command::new(suite).args(["callers::", "--list"]).output()?;
    let list = String::from_utf8(output.stdout)?;
    Ok(list.lines().filter(|line| line.ends_with(": test")).count())
}

/// Among the messages of cargo, one JSON object a line, the program made of the suite's `main.rs`.
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| {
            let source = message["target"]["src_path"].as_str().unwrap_or_default();
            source.ends_with("runtime/oci/tests/main.rs")
        })
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}
