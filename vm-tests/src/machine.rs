//! One virtual machine: started, watched over its console, ended.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::initramfs::Initramfs;
use crate::kernel::{self, Kernel};

/// What a machine has and how long it may take.
#[derive(Clone, Copy, Debug)]
pub struct Hardware {
    /// Memory, in MiB.
    pub memory: u32,
    /// Processors.
    pub processors: u32,
    /// The most time until the scenario is done. Emulated machines are ten times slower than real ones.
    pub deadline: Duration,
}

/// How instructions are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accelerator {
    Kvm,
    /// QEMU's own emulation.
    Tcg,
}

/// Ends the process with the value.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Boots the machine and returns what its scenario checked, in order.
///
/// # Errors
///
/// A check failed, the machine stopped before the scenario was done, or time is up. The console's text is printed.
pub fn run(kernel: &Kernel, files: &Initramfs, hardware: Hardware) -> anyhow::Result<Vec<String>> {
    run_with_disks(kernel, files, &[], hardware)
}

/// The same with disks: `/dev/vda` and so on. They are written to without care for what a crash of the host would leave of them.
///
/// # Errors
///
/// As [`run`].
pub fn run_with_disks(
    kernel: &Kernel,
    files: &Initramfs,
    disks: &[&Path],
    hardware: Hardware,
) -> anyhow::Result<Vec<String>> {
    Ok(boot(kernel, files, disks, hardware, None)?.passed)
}

/// What was known of a machine when it lost its power.
#[derive(Debug, Default)]
pub struct Report {
    /// What its scenario checked, in order.
    pub passed: Vec<String>,
    /// What it reported as acknowledged.
    pub acknowledged: Vec<String>,
}

/// The same, but the machine loses its power a while `after` the scenario reported `cut`: what it had not yet written to its disks
/// is lost, as in the caches of a kernel.
///
/// # Errors
///
/// As [`run`], and if the scenario is done before.
pub fn run_and_cut(
    kernel: &Kernel,
    files: &Initramfs,
    disks: &[&Path],
    hardware: Hardware,
    after: Duration,
) -> anyhow::Result<Report> {
    boot(kernel, files, disks, hardware, Some(after))
}

fn boot(
    kernel: &Kernel,
    files: &Initramfs,
    disks: &[&Path],
    hardware: Hardware,
    cut: Option<Duration>,
) -> anyhow::Result<Report> {
    let dir = tempfile::tempdir()?;
    let initramfs = dir.path().join("initramfs.cpio");
    fs::write(&initramfs, files.archive())?;
    let mut qemu = command(kernel, &initramfs, hardware, accelerator(kernel)?);
    for disk in disks {
        let drive = format!("file={},format=raw,if=virtio,cache=unsafe", disk.display());
        qemu.args(["-drive", &drive]);
    }
    watch(&mut qemu, hardware.deadline, cut)
}

fn command(
    kernel: &Kernel,
    initramfs: &Path,
    hardware: Hardware,
    accelerator: Accelerator,
) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    let (accelerator, processor) = match accelerator {
        Accelerator::Kvm => ("kvm", "host"),
        // The instructions for fast copies are the slow ones where each byte is a step of the emulation; a fifth level of page
        // tables is one more to walk.
        Accelerator::Tcg => ("tcg", "max,erms=off,fsrm=off,la57=off"),
    };
    // Not `microvm`, though it starts faster: it has only the PIT to measure other clocks with, and on a busy host an emulated
    // processor then fails to find the speed of its clock and hangs before the first line.
    qemu.args([
        "-machine",
        &format!("q35,accel={accelerator}"),
        "-cpu",
        processor,
    ])
    .args(["-m", &hardware.memory.to_string()])
    .args(["-smp", &hardware.processors.to_string()])
    .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"])
    .args(["-serial", "stdio", "-kernel"])
    .arg(&kernel.image)
    .arg("-initrd")
    .arg(initramfs)
    // Mitigations, an audit and cleared pages protect nobody here. The processor's own clock is true, though it looks unsteady to
    // the kernel: every look at another one goes through the emulator's one lock.
    .args([
        "-append",
        "console=ttyS0 panic=-1 reboot=t quiet mitigations=off audit=0 init_on_alloc=0 tsc=reliable",
    ])
    .stdin(Stdio::null())
    .stdout(Stdio::piped())
    .stderr(Stdio::null());
    qemu
}

fn watch(qemu: &mut Command, limit: Duration, cut: Option<Duration>) -> anyhow::Result<Report> {
    let begin = Instant::now();
    let deadline = begin + limit;
    let mut process = Guard(qemu.spawn().context("start qemu-system-x86_64")?);
    let console = process.0.stdout.take().expect("it is piped");
    let (lines, console_lines) = mpsc::channel();
    // Ends with the pipe, that is, with the process.
    std::thread::spawn(move || {
        let mut reader = BufReader::new(console);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if lines.send(text).is_err() {
                break;
            }
        }
    });
    let mut report = Report::default();
    let mut end = None;
    loop {
        let left = end
            .unwrap_or(deadline)
            .saturating_duration_since(Instant::now());
        let line = match console_lines.recv_timeout(left) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) if end.is_some() => break,
            Err(RecvTimeoutError::Timeout) => bail!("no end after {limit:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the machine stopped"),
        };
        show(begin, &line);
        // The firmware's last words may be on the same line.
        let Some((_, words)) = line.split_once("KNARR-VM ") else {
            continue;
        };
        match (words, cut) {
            ("done", None) => return Ok(report),
            ("done", Some(_)) => bail!("done before its power was cut"),
            ("cut", Some(after)) => end = Some(deadline.min(Instant::now() + after)),
            _ => {}
        }
        if !report.note(words) {
            // What the scenario shows of the state after a failure, up to the machine's end.
            while let Ok(line) = console_lines.recv_timeout(Duration::from_secs(60)) {
                show(begin, &line);
            }
            bail!("{words}");
        }
    }
    drop(process);
    println!("{:7.1} the power is cut", begin.elapsed().as_secs_f64());
    // What it said before.
    for line in console_lines {
        show(begin, &line);
        if let Some((_, words)) = line.split_once("KNARR-VM ") {
            report.note(words);
        }
    }
    Ok(report)
}

impl Report {
    /// Takes in what the scenario reports; returns whether it may go on.
    fn note(&mut self, words: &str) -> bool {
        if let Some(what) = words.strip_prefix("ok ") {
            self.passed.push(what.to_owned());
        } else if let Some(what) = words.strip_prefix("acknowledged ") {
            // The last line may be cut as well.
            self.acknowledged
                .extend(what.strip_suffix(" end").map(str::to_owned));
        }
        !words.starts_with("failed ")
    }
}

/// A line of the console with the second in which it came: seen at once with `--no-capture`, else with the test's failure.
fn show(begin: Instant, line: &str) {
    println!("{:7.1} {line}", begin.elapsed().as_secs_f64());
}

/// KVM where a machine really starts with it: inside a virtual machine the device may be there and not work. Tried once for each
/// start of the host.
fn accelerator(kernel: &Kernel) -> anyhow::Result<Accelerator> {
    if !Path::new("/dev/kvm").exists() {
        return Ok(Accelerator::Tcg);
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let verdict = kernel::cache_dir()?.join(format!("kvm-{}", boot.trim()));
    if let Ok(verdict) = fs::read_to_string(&verdict) {
        return Ok(match &*verdict {
            "works" => Accelerator::Kvm,
            _ => Accelerator::Tcg,
        });
    }
    let mut files = Initramfs::new(kernel, "")?;
    files.script(
        "/init",
        "#!/bin/busybox sh\necho KNARR-VM done\nexec /bin/busybox poweroff -f\n",
    );
    let dir = tempfile::tempdir()?;
    let initramfs = dir.path().join("initramfs.cpio");
    fs::write(&initramfs, files.archive())?;
    let limit = Duration::from_secs(15);
    let hardware = Hardware {
        memory: 256,
        processors: 2,
        deadline: limit,
    };
    let mut qemu = command(kernel, &initramfs, hardware, Accelerator::Kvm);
    let works = watch(&mut qemu, limit, None).is_ok();
    fs::write(&verdict, if works { "works" } else { "does not work" })?;
    Ok(if works {
        Accelerator::Kvm
    } else {
        Accelerator::Tcg
    })
}
