//! Integration tests of the whole, on real kernels, with the real kubectl.

mod api;
mod example;
mod faults;
mod features;
mod harness;
mod images;
mod kubectl;
mod lifecycle;
mod nodes;
mod pods;
mod scheduling;
mod storage;
mod streams;
mod upgrade;
mod volumes;

use harness::{Disk, Machine};

#[test]
fn a_machine_has_its_own_network_processes_and_groups() {
    let machine = Machine::start("alone", "192.168.77.2/24", Disk::Memory);
    assert_eq!(machine.sh_ok("hostname").trim(), "alone");
    assert!(
        machine
            .sh_ok("ip -o address show eth0")
            .contains("192.168.77.2/24")
    );
    assert_eq!(
        machine
            .sh_ok("ls /sys/fs/cgroup/memory | grep -c knarr-test || true")
            .trim(),
        "0"
    );
    assert_eq!(
        machine
            .sh_ok("echo $$; ls /proc | grep -c '^[0-9]*$'")
            .lines()
            .count(),
        2
    );
    let groups = machine.groups().to_vec();
    drop(machine);
    for group in groups {
        assert!(!group.exists(), "{} is left", group.display());
    }
}
