//! The ends of the shim's children.

use std::time::SystemTime;

use knarr_oci::ContainerId;
use knarr_oci::error::chain;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::Server;
use crate::protocol::{Exit, Message};

impl Server {
    /// Takes leave of every child that ended: containers, execs, and orphans whose parents in the pod ended before.
    pub(super) fn reap(&mut self) {
        while let Ok(Some(_)) = self.children.read_signal() {}
        loop {
            let (pid, code) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            if self.pause == Some(pid) {
                // The kernel has ended all that was in the namespace and let us see each end before this one.
                self.pause = None;
                self.over = true;
                continue;
            }
            if let Some(exec) = self.execs.remove(&pid.as_raw()) {
                self.send(
                    exec.client,
                    &Message::ProcessExited {
                        exec: exec.name,
                        code,
                    },
                    Vec::new(),
                );
                continue;
            }
            let ended = self
                .containers
                .iter()
                .find(|(_, c)| c.pid == pid.as_raw() && c.exit.is_none());
            let Some((&number, container)) = ended else {
                continue;
            };
            let oom_killed = code == 137 && self.was_oom_killed(&container.what.container);
            if !container.own_pids {
                self.kill_rest(&container.what.container);
            }
            let Some(container) = self.containers.get_mut(&number) else {
                continue;
            };
            let exit = Exit {
                code,
                oom_killed,
                at: SystemTime::now(),
                start_error: container.start_error.clone(),
            };
            let mut wishes = Vec::new();
            if let Err(error) = container.record(exit.clone(), &mut wishes) {
                // The engine hears it all the same; only a crash of both before it writes it down would lose it.
                eprintln!(
                    "knarr-shim: record the end of {}: {error}",
                    container.what.container
                );
            }
            let message = Message::Exited {
                container: container.what.container.clone(),
                exit,
            };
            self.heed(number, wishes);
            self.resume(number);
            self.announce(&message);
        }
    }

    /// Kills what a container leaves behind in a PID namespace that is not its own, where the kernel does not.
    fn kill_rest(&self, container: &str) {
        let Ok(id) = ContainerId::parse(container) else {
            return;
        };
        if let Err(error) = self.runtime.kill(&id, Signal::SIGKILL, true) {
            eprintln!(
                "knarr-shim: kill the rest of {container}: {}",
                chain(&error)
            );
        }
    }

    fn was_oom_killed(&self, container: &str) -> bool {
        let Ok(id) = ContainerId::parse(container) else {
            return false;
        };
        let kills = self
            .runtime
            .details(&id)
            .map_err(|error| chain(&error))
            .and_then(|details| {
                details
                    .cgroup
                    .stats()
                    .map(|stats| stats.memory.oom_kills)
                    .map_err(|error| chain(&error))
            });
        match kills {
            Ok(count) => count > 0,
            Err(error) => {
                eprintln!("knarr-shim: read the memory group of {container}: {error}");
                false
            }
        }
    }
}
