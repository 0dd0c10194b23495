//! `checkpoint` and `restore`, through criu.

use std::os::fd::RawFd;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use knarr_oci::{
    CgroupsMode, CheckpointOptions, ContainerId, Created, CriuOptions, PageServer, RestoreOptions,
};
use oci_spec::runtime;

use super::container::{Receivers, hand_over};
use super::{Context, attend, descriptors, parse_id};

/// What both have.
#[derive(Debug, Args)]
struct Common {
    /// Directory of criu's images.
    #[arg(long, default_value = "checkpoint", value_name = "DIR")]
    image_path: PathBuf,
    /// Directory of criu's log and other files, instead of that of the images.
    #[arg(long, value_name = "DIR")]
    work_path: Option<PathBuf>,
    /// Allow connections over TCP.
    #[arg(long)]
    tcp_established: bool,
    /// Allow unix sockets that lead out of the container.
    #[arg(long)]
    ext_unix_sk: bool,
    /// Allow a container that belongs to the caller's session.
    #[arg(long)]
    shell_job: bool,
    /// Allow file locks.
    #[arg(long)]
    file_locks: bool,
    /// Allow open files whose name was removed but that have another one.
    #[arg(long)]
    link_remap: bool,
    /// Send memory on demand (userfaultfd).
    #[arg(long)]
    lazy_pages: bool,
    /// How limits of control groups are restored.
    #[arg(long, value_enum, value_name = "MODE")]
    manage_cgroups_mode: Option<Mode>,
    /// A kind of namespace whose content is neither saved nor restored.
    #[arg(long, value_enum, value_name = "KIND")]
    empty_ns: Vec<EmptyNamespace>,
    /// Throw memory out of former images that is in later ones.
    #[arg(long)]
    auto_dedup: bool,
}

/// criu's words.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    Soft,
    Full,
    Strict,
    Ignore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EmptyNamespace {
    Network,
}

/// Saving.
#[derive(Debug, Args)]
pub(super) struct Checkpoint {
    #[command(flatten)]
    common: Common,
    /// Directory of former images, from that of the images.
    #[arg(long, value_name = "DIR")]
    parent_path: Option<PathBuf>,
    /// Let the container go on.
    #[arg(long)]
    leave_running: bool,
    /// Leave out connections that are being made.
    #[arg(long)]
    tcp_skip_in_flight: bool,
    /// Descriptor to which a zero byte is written when memory can be asked for.
    #[arg(long, value_name = "FD", requires = "lazy_pages")]
    status_fd: Option<RawFd>,
    /// Send memory to a page server.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_server)]
    page_server: Option<PageServer>,
    /// Save memory only, ahead of the rest, and let the container go on.
    #[arg(long)]
    pre_dump: bool,
    /// The container.
    #[arg(value_parser = parse_id)]
    id: ContainerId,
}

/// Restoring.
#[derive(Debug, Args)]
pub(super) struct Restore {
    #[command(flatten)]
    common: Common,
    /// Socket to which the terminal's master is sent.
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// The bundle: a directory with config.json.
    #[arg(long, short, default_value = ".", value_name = "DIR")]
    bundle: PathBuf,
    /// Do not wait for its end.
    #[arg(long, short)]
    detach: bool,
    /// File to which the process id is written.
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Do not adopt orphaned processes of the container.
    #[arg(long)]
    no_subreaper: bool,
    /// No effect: criu decides how the root is entered.
    #[arg(long)]
    no_pivot: bool,
    /// Security label instead of the one saved, as TYPE:NAME.
    #[arg(long, value_name = "LABEL")]
    lsm_profile: Option<String>,
    /// SELinux context of mounts instead of the one saved.
    #[arg(long, value_name = "CONTEXT")]
    lsm_mount_context: Option<String>,
    /// The container's new name.
    #[arg(value_parser = parse_id)]
    id: ContainerId,
}

fn parse_server(text: &str) -> Result<PageServer, String> {
    let parts = text.rsplit_once(':');
    let parts = parts.filter(|(address, _)| !address.is_empty());
    let (address, port) = parts.ok_or("use ADDRESS:PORT")?;
    let port = port.parse().map_err(|_| format!("{port:?} is no port"))?;
    Ok(PageServer {
        address: address.trim_matches(['[', ']']).to_owned(),
        port,
    })
}

impl Common {
    fn options(&self, context: &Context) -> CriuOptions {
        CriuOptions {
            program: context.criu.clone(),
            images: self.image_path.clone(),
            work: self.work_path.clone(),
            tcp_established: self.tcp_established,
            ext_unix_sk: self.ext_unix_sk,
            shell_job: self.shell_job,
            file_locks: self.file_locks,
            link_remap: self.link_remap,
            empty_network: self.empty_ns.contains(&EmptyNamespace::Network),
            auto_dedup: self.auto_dedup,
            lazy_pages: self.lazy_pages,
            cgroups: self.manage_cgroups_mode.map(|mode| match mode {
                Mode::Soft => CgroupsMode::Soft,
                Mode::Full => CgroupsMode::Full,
                Mode::Strict => CgroupsMode::Strict,
                Mode::Ignore => CgroupsMode::Ignore,
            }),
        }
    }
}

/// `checkpoint`.
pub(super) fn checkpoint(context: &Context, args: &Checkpoint) -> anyhow::Result<u8> {
    let options = CheckpointOptions {
        criu: args.common.options(context),
        parent: args.parent_path.clone(),
        leave_running: args.leave_running,
        pre_dump: args.pre_dump,
        tcp_skip_in_flight: args.tcp_skip_in_flight,
        page_server: args.page_server.clone(),
        status_fd: args.status_fd,
    };
    for failure in context.runtime.checkpoint(&args.id, &options)? {
        context.log.warn(&knarr_oci::error::chain(&failure));
    }
    Ok(0)
}

/// `restore`.
pub(super) fn restore(context: &Context, args: &Restore) -> anyhow::Result<u8> {
    if !args.detach && !args.no_subreaper {
        nix::sys::prctl::set_child_subreaper(true).context("become the subreaper")?;
    }
    let signals = (!args.detach).then(attend::block_signals).transpose()?;
    let created = make(context, args)?;
    let Some(signals) = signals else { return Ok(0) };
    let code = attend::until_exit(created, &signals)?;
    for failure in context.runtime.delete(&args.id, true)? {
        context.log.warn(&knarr_oci::error::chain(&failure));
    }
    Ok(code)
}

fn make(context: &Context, args: &Restore) -> anyhow::Result<Created> {
    let loaded = knarr_oci::spec::load(&args.bundle.join("config.json"))?;
    let warn = |warning: &String| context.log.warn(warning);
    loaded.warnings.iter().for_each(warn);
    let spec = loaded.value;
    let terminal = spec.process().as_ref().and_then(runtime::Process::terminal) == Some(true);
    let io = descriptors::io(
        context,
        terminal,
        args.console_socket.as_deref(),
        args.detach,
        0,
    )?;
    let options = RestoreOptions {
        criu: args.common.options(context),
        lsm_profile: args.lsm_profile.clone(),
        lsm_mount_context: args.lsm_mount_context.clone(),
    };
    let mut created = context
        .runtime
        .restore(&args.id, &args.bundle, &spec, io, &options)?;
    created.warnings.iter().for_each(warn);
    let handed = hand_over(
        &mut created,
        &Receivers {
            terminal: args.console_socket.as_deref(),
            pidfd: None,
            pid: args.pid_file.as_deref(),
            kind: "standard",
        },
    );
    if let Err(error) = handed {
        context
            .runtime
            .delete(&args.id, true)
            .context("delete the container after a failure")?;
        return Err(error);
    }
    Ok(created)
}

#[cfg(test)]
mod tests {
    use super::parse_server;

    #[test]
    fn a_page_server_has_an_address_and_a_port() {
        let server = parse_server("10.0.0.1:27000").unwrap();
        assert_eq!((server.address.as_str(), server.port), ("10.0.0.1", 27000));
        assert_eq!(parse_server("[::1]:1").unwrap().address, "::1");
        assert!(parse_server("10.0.0.1").is_err() && parse_server(":1").is_err());
        assert!(parse_server("host:much").is_err());
    }
}
