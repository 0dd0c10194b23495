//! Saving a running container with criu.

use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::criu::external;
use super::criu::wire::{self, Features, Request, ask};
use super::criu::{CriuError, CriuOptions, Session, files};
use super::{Runtime, status_of};
use crate::cgroup::Group;
use crate::error::{ControlError, StateError};
use crate::hooks::HookError;
use crate::id::ContainerId;
use crate::namespace::Kind;
use crate::state::{Record, Status};
use crate::sys;

/// Where the list of a container's first descriptors is, beside criu's images; runc's name.
pub(super) const DESCRIPTORS: &str = "descriptors.json";

/// How to save a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// What restore knows, too.
    pub criu: CriuOptions,
    /// The directory of the images before, from that of the images.
    pub parent: Option<PathBuf>,
    /// The container goes on afterwards.
    pub leave_running: bool,
    /// Only its memory is saved, ahead of the rest; it goes on.
    pub pre_dump: bool,
    /// Connections that are being made are left out.
    pub tcp_skip_in_flight: bool,
    /// Who takes the memory, instead of a file.
    pub page_server: Option<PageServer>,
    /// Descriptor to which criu writes a zero byte when it waits to send memory on demand.
    pub status_fd: Option<RawFd>,
}

/// Where a page server of criu's listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageServer {
    /// Its address.
    pub address: String,
    /// Its port.
    pub port: u16,
}

/// A container cannot be saved.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// There is none, or its state cannot be read.
    #[error("state of the container")]
    State(#[source] StateError),
    /// It does not run.
    #[error("cannot checkpoint a container that is {status}")]
    WrongStatus {
        /// What it is.
        status: Status,
    },
    /// Not a container of this kind.
    #[error("cannot checkpoint {what}")]
    Unsupported {
        /// Why not.
        what: &'static str,
    },
    /// Something about its process cannot be told.
    #[error("{what}")]
    System {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// criu.
    #[error(transparent)]
    Criu(#[from] CriuError),
    /// It is saved, but what is left of it cannot be removed.
    #[error("delete the container, which has been saved")]
    Delete(#[source] ControlError),
}

impl Runtime {
    /// Saves a container to images. Unless it is to go on, it is ended and deleted then; the failures of its poststop
    /// hooks are given.
    ///
    /// # Errors
    ///
    /// See [`CheckpointError`]. If criu fails, the container goes on.
    pub fn checkpoint(
        &self,
        id: &ContainerId,
        options: &CheckpointOptions,
    ) -> Result<Vec<HookError>, CheckpointError> {
        let dir = self.dir(id);
        let record = dir.read_record(id).map_err(CheckpointError::State)?;
        let status = status_of(&dir, &record).map_err(CheckpointError::State)?;
        if !matches!(status, Status::Running | Status::Paused) {
            return Err(CheckpointError::WrongStatus { status });
        }
        if !nix::unistd::geteuid().is_root() {
            let what = "an ordinary user's container: criu needs root";
            return Err(CheckpointError::Unsupported { what });
        }
        if record.mounted_on_host {
            let what = "a container without a mount namespace";
            return Err(CheckpointError::Unsupported { what });
        }
        let spec = dir.read_config(id).map_err(CheckpointError::State)?;
        let program = options.criu.find()?;
        options.check()?;
        let open = options.criu.files(true, "dump.log")?;
        let keep: Vec<RawFd> = options.status_fd.into_iter().collect();
        let mut session = Session::start(&program, &open, &keep, || Ok(()))?;
        options.check_features(&mut session)?;

        let mut asked = options.criu.request(&session, &spec);
        asked.pid = Some(record.pid);
        asked.root = Some(text(&record.rootfs)?);
        asked.leave_running = Some(options.leave_running);
        asked.tcp_skip_in_flight = options.tcp_skip_in_flight.then_some(true);
        asked.freeze_cgroup = freezer(&record).map(|path| text(&path)).transpose()?;
        asked.parent_img = options.parent.as_deref().map(text).transpose()?;
        asked.status_fd = options.status_fd;
        asked.ps = options.page_server.as_ref().map(|server| wire::PageServer {
            address: Some(server.address.clone()),
            port: Some(server.port.into()),
        });
        asked.external = joined(&spec, &record)?;
        if options.pre_dump || options.parent.is_some() {
            asked.track_mem = Some(true);
        }
        if !options.pre_dump {
            let root = PathBuf::from(format!("/proc/{}/root", record.pid));
            let mounts = external::mounts(&spec, &record.cgroup, &record.bundle);
            asked.ext_mnt = external::to_save(&root, &spec, &mounts)
                .map_err(system("find the container's mounts"))?;
            let descriptors = (0..3)
                .map(|number| external::descriptor(record.pid, number))
                .collect::<io::Result<Vec<_>>>()
                .map_err(system("look at the container's standard streams"))?;
            let named = descriptors.iter().filter_map(|one| external::external(one));
            asked.external.extend(named);
            write_descriptors(&options.criu.images, &descriptors)?;
        }
        let request = Request {
            kind: if options.pre_dump {
                ask::PRE_DUMP
            } else {
                ask::DUMP
            },
            opts: Some(asked),
            ..Request::default()
        };
        session.ask(&request, |_, _, _| Ok::<_, CriuError>(()))?;
        if options.pre_dump {
            // It would wait for the next request now.
            drop(session);
        } else {
            session.finish();
        }
        if options.pre_dump || options.leave_running {
            return Ok(Vec::new());
        }
        self.delete(id, true).map_err(CheckpointError::Delete)
    }
}

impl CheckpointOptions {
    /// What can be told before anything is done.
    fn check(&self) -> Result<(), CriuError> {
        let invalid = |what: String| Err(CriuError::Invalid { what });
        if let Some(parent) = &self.parent {
            if parent.is_absolute() {
                return invalid("--parent-path is relative to --image-path".to_owned());
            }
            let there = self.criu.images.join(parent);
            if !there.is_dir() {
                return invalid(format!(
                    "--parent-path: there is no directory {}",
                    there.display()
                ));
            }
        }
        if let Some(fd) = self.status_fd {
            let opened = sys::inherited_fd(fd)
                .and_then(|fd| Ok(OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?)));
            match opened {
                Ok(flags) if flags.intersects(OFlag::O_WRONLY | OFlag::O_RDWR) => {}
                Ok(_) => return invalid(format!("--status-fd {fd} cannot be written to")),
                Err(error) => return invalid(format!("--status-fd {fd}: {error}")),
            }
        }
        Ok(())
    }

    fn check_features(&self, session: &mut Session) -> Result<(), CriuError> {
        let track = self.pre_dump || self.parent.is_some();
        if !track && !self.criu.lazy_pages {
            return Ok(());
        }
        let features = session.features(Features {
            mem_track: track.then_some(true),
            lazy_pages: self.criu.lazy_pages.then_some(true),
        })?;
        let lacks = |feature, wanted_by| Err(CriuError::Lacks { feature, wanted_by });
        if track && features.mem_track != Some(true) {
            return lacks("mem_track", "--pre-dump or --parent-path");
        }
        if self.criu.lazy_pages && features.lazy_pages != Some(true) {
            return lacks("lazy_pages", "--lazy-pages");
        }
        Ok(())
    }
}

/// The directory through which criu freezes the container.
fn freezer(record: &Record) -> Option<PathBuf> {
    let group = Group::from_record(record.cgroup.clone());
    group.directory("freezer").map(Path::to_owned)
}

/// Namespaces that were joined by path stay out of the images, where criu can: their names for it.
fn joined(spec: &oci_spec::runtime::Spec, record: &Record) -> Result<Vec<String>, CheckpointError> {
    use std::os::unix::fs::MetadataExt;
    let list = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref());
    let mut names = Vec::new();
    for namespace in list.into_iter().flatten() {
        let by_path = namespace
            .path()
            .as_ref()
            .is_some_and(|path| !path.as_os_str().is_empty());
        let known = OUTSIDE
            .iter()
            .find(|(kind, _)| kind.flag().bits() == namespace.typ() as i32);
        if let (true, Some((kind, name))) = (by_path, known) {
            let path = format!("/proc/{}/ns/{}", record.pid, kind.link());
            let meta = fs::metadata(&path).map_err(system(format!("look at {path}")))?;
            names.push(format!("{}[{}]:{name}", kind.link(), meta.ino()));
        }
    }
    Ok(names)
}

/// The kinds of namespace that criu can leave out, and their names in the images; runc's.
pub(super) const OUTSIDE: [(Kind, &str); 2] =
    [(Kind::Network, "extRootNetNS"), (Kind::Pid, "extRootPidNS")];

fn write_descriptors(images: &Path, descriptors: &[String]) -> Result<(), CriuError> {
    let path = images.join(DESCRIPTORS);
    serde_json::to_vec(descriptors)
        .map_err(io::Error::from)
        .and_then(|text| fs::write(&path, text))
        .map_err(files("write", &path))
}

fn text(path: &Path) -> Result<String, CheckpointError> {
    external::text(path).map_err(system(format!("tell criu of {}", path.display())))
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> CheckpointError {
    let what = what.into();
    move |source| CheckpointError::System { what, source }
}
