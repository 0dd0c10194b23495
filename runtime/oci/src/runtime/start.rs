//! Starting a created container.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::fcntl::{OFlag, open};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use super::{Created, Runtime, Waiting, status_of};
use crate::error::{CreateError, StartError};
use crate::hooks;
use crate::id::ContainerId;
use crate::init::command_name;
use crate::message::{Channel, Report};
use crate::state::{Record, StateDir, Status};
use crate::sys;

impl Runtime {
    /// Lets the user's program run. Returns when it has been executed, or could not be.
    ///
    /// # Errors
    ///
    /// See [`StartError`]. A program that cannot be executed (in spite of the look at create) ends the container, and its
    /// errno is kept in [`CreateError::Execute`]. A hook that fails, poststart too, ends it for good: it is deleted.
    pub fn start(&self, id: &ContainerId) -> Result<(), StartError> {
        let dir = self.dir(id);
        let record = dir.read_record(id).map_err(StartError::State)?;
        let status = status_of(&dir, &record).map_err(StartError::State)?;
        if status != Status::Created {
            return Err(StartError::WrongStatus { status });
        }
        self.begin(id, &dir, &record)
    }

    /// [`Runtime::start`] of the container that [`Runtime::create_to_start`] has just made. If somebody has paused it since,
    /// this waits until it may go on.
    ///
    /// # Errors
    ///
    /// As [`Runtime::start`], and [`StartError::WrongStatus`] if it was started already.
    pub fn start_new(&self, id: &ContainerId, created: &mut Created) -> Result<(), StartError> {
        let dir = self.dir(id);
        match created.waiting.take() {
            Some(Waiting { record, .. }) if record.no_process => no_process(&record),
            Some(Waiting { channel, record }) => self.go(id, &dir, &record, &channel),
            None => {
                let record = dir.read_record(id).map_err(StartError::State)?;
                self.begin(id, &dir, &record)
            }
        }
    }

    fn begin(&self, id: &ContainerId, dir: &StateDir, record: &Record) -> Result<(), StartError> {
        if record.no_process {
            return no_process(record);
        }
        let channel = match connect_to(dir) {
            // Another start was faster.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ECONNREFUSED | libc::ENOENT)
                ) =>
            {
                return Err(StartError::WrongStatus {
                    status: Status::Running,
                });
            }
            connected => connected.map_err(StartError::Channel)?,
        };
        match fs::remove_file(dir.socket()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StartError::Channel(error));
            }
            _ => {}
        }
        self.go(id, dir, record, &channel)
    }

    fn go(
        &self,
        id: &ContainerId,
        dir: &StateDir,
        record: &Record,
        channel: &Channel,
    ) -> Result<(), StartError> {
        channel.go().map_err(StartError::Channel)?;
        loop {
            match channel.next().map_err(StartError::Channel)? {
                // Closed by exec, or by its death, which its parent learns.
                Report::Gone => break,
                Report::Failed(failure) => {
                    let config = dir.read_config(id).map_err(StartError::State)?;
                    let command = config
                        .process()
                        .as_ref()
                        .map(command_name)
                        .unwrap_or_default();
                    let error = CreateError::from_failure(failure, &command);
                    if error.is_hook() {
                        // With its poststop hooks (runtime.md, "Lifecycle", step 7).
                        let _untold = self.delete(id, true).map_err(StartError::Destroy)?;
                    }
                    return Err(StartError::Process(error));
                }
                Report::SeccompListener(number) => {
                    let config = dir.read_config(id).map_err(StartError::State)?;
                    let state = hooks::state_for(record, record.pid, Status::Created);
                    let pid = Pid::from_raw(record.pid);
                    let pidfd = sys::pidfd_open(pid).map_err(StartError::Channel)?;
                    super::tell_agent(&config, pid, pidfd.as_fd(), number, &state)
                        .map_err(StartError::Process)?;
                    channel.go().map_err(StartError::Channel)?;
                }
                _ => return Err(StartError::Channel(io::ErrorKind::InvalidData.into())),
            }
        }
        if record.poststart {
            let config = dir.read_config(id).map_err(StartError::State)?;
            let state = hooks::state_for(record, record.pid, Status::Running);
            let list = config
                .hooks()
                .as_ref()
                .and_then(|hooks| hooks.poststart().as_deref())
                .unwrap_or_default();
            if let Err(error) = hooks::run_all("poststart", list, &state, &hooks::ON_HOST) {
                // Since runtime-spec 1.2.1 this is more than a warning (runtime.md, "Lifecycle", step 9).
                let _untold = self.delete(id, true).map_err(StartError::Destroy)?;
                return Err(StartError::Hook(error));
            }
        }
        Ok(())
    }
}

/// There is nothing to start, so what is held for it ends.
fn no_process(record: &Record) -> Result<(), StartError> {
    super::end_init(record).map_err(StartError::Destroy)?;
    Err(StartError::NoProcess)
}

fn connect_to(dir: &StateDir) -> io::Result<Channel> {
    let directory = open(
        dir.path(),
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let path = format!("/proc/self/fd/{}/start.sock", directory.as_raw_fd());
    let socket = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path.as_str())?)?;
    Ok(Channel::from_fd(socket))
}
