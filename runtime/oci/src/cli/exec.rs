//! `exec`.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use knarr_oci::{ContainerId, ExecOptions, SubGroup};
use oci_spec::runtime::{
    Box as ConsoleSize, Capabilities, Capability, LinuxCapabilities, Process, Spec, User,
};

use super::container::{Receivers, hand_over};
use super::{Context, attend, descriptors, parse_id};

/// Running one more process.
#[derive(Debug, Args)]
pub(super) struct Exec {
    /// Socket to which the terminal's master is sent.
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Socket to which a descriptor of the process (pidfd) is sent.
    #[arg(long, value_name = "SOCKET")]
    pidfd_socket: Option<PathBuf>,
    /// Working directory.
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Environment variables to add.
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Give it a terminal.
    #[arg(long, short)]
    tty: bool,
    /// `uid[:gid]`.
    #[arg(long, short, value_name = "UID[:GID]")]
    user: Option<String>,
    /// Additional groups.
    #[arg(long, short = 'g', value_name = "GID")]
    additional_gids: Vec<u32>,
    /// File with the process as JSON, instead of the arguments.
    #[arg(long, short, value_name = "FILE")]
    process: Option<PathBuf>,
    /// Do not wait for its end.
    #[arg(long, short)]
    detach: bool,
    /// File to which the process id is written.
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// SELinux label.
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// AppArmor profile.
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// Set no_new_privs.
    #[arg(long)]
    no_new_privs: bool,
    /// Capabilities to add.
    #[arg(long, short, value_name = "CAPABILITY")]
    cap: Vec<String>,
    /// Descriptors from 3 up to pass on.
    #[arg(long, default_value_t = 0, value_name = "N")]
    preserve_fds: u32,
    /// Do not fail if the container is paused; the program waits for its resumption.
    #[arg(long)]
    ignore_paused: bool,
    /// Do not adopt orphans. Accepted for compatibility: exec never does.
    #[arg(long, hide = true)]
    no_subreaper: bool,
    /// A cgroup below the container's; on v1 with the controllers that are meant.
    #[arg(long, value_name = "[CONTROLLER[,...]:]PATH", value_parser = parse_group)]
    cgroup: Vec<SubGroup>,
    /// The container.
    #[arg(value_parser = parse_id)]
    id: ContainerId,
    /// The program and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// `cpu,memory:below` or `below`.
fn parse_group(text: &str) -> Result<SubGroup, String> {
    let (controllers, path) = match text.split_once(':') {
        Some((list, path)) => (list.split(',').map(str::to_owned).collect(), path),
        None => (Vec::new(), text),
    };
    if controllers.iter().any(String::is_empty) {
        return Err(format!("{text:?} names an empty controller"));
    }
    let path = path.into();
    Ok(SubGroup { controllers, path })
}

/// Runs it, and waits for its end unless detached.
pub(super) fn exec(context: &Context, args: &Exec) -> anyhow::Result<u8> {
    let config = context.runtime.config(&args.id)?;
    let process = process(context, &config, args)?;
    let terminal = process.terminal() == Some(true);
    let io = descriptors::io(
        context,
        terminal,
        args.console_socket.as_deref(),
        args.detach,
        args.preserve_fds,
    )?;
    let signals = (!args.detach).then(attend::block_signals).transpose()?;
    let options = ExecOptions {
        ignore_paused: args.ignore_paused,
        groups: args.cgroup.clone(),
    };
    let mut created = context
        .runtime
        .exec_configured(&args.id, &config, &process, io, &options)?;
    created
        .warnings
        .iter()
        .for_each(|warning| context.log.warn(warning));
    context.log.debug(&format!(
        "executed process {} in container {}",
        created.pid, args.id
    ));
    hand_over(
        &mut created,
        &Receivers {
            terminal: args.console_socket.as_deref(),
            pidfd: args.pidfd_socket.as_deref(),
            pid: args.pid_file.as_deref(),
            kind: "setns",
        },
    )?;
    match signals {
        Some(signals) => attend::until_exit(created, &signals),
        None => Ok(0),
    }
}

/// From the file, or from the container's own process and the flags.
fn process(context: &Context, config: &Spec, args: &Exec) -> anyhow::Result<Process> {
    if let Some(path) = &args.process {
        let loaded = knarr_oci::spec::load_process(path)?;
        loaded
            .warnings
            .iter()
            .for_each(|warning| context.log.warn(warning));
        let mut process = loaded.value;
        if args.tty {
            process.set_terminal(Some(true));
        }
        return Ok(process);
    }
    if args.command.is_empty() {
        bail!("no program is given");
    }
    let mut process = config
        .process()
        .clone()
        .context("the container's configuration has no process")?;
    process.set_args(Some(args.command.clone()));
    process.set_terminal(Some(args.tty));
    process.set_console_size(None::<ConsoleSize>);
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(args.env.iter().cloned());
    process.set_env(Some(env));
    if let Some(user) = &args.user {
        process.set_user(parse_user(user, process.user())?);
    }
    if !args.additional_gids.is_empty() {
        let mut user = process.user().clone();
        let mut gids = user.additional_gids().clone().unwrap_or_default();
        gids.extend(&args.additional_gids);
        user.set_additional_gids(Some(gids));
        process.set_user(user);
    }
    if let Some(label) = &args.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    if let Some(profile) = &args.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if !args.cap.is_empty() {
        process.set_capabilities(Some(add_capabilities(
            process.capabilities().clone(),
            &args.cap,
        )?));
    }
    Ok(process)
}

fn parse_user(text: &str, before: &User) -> anyhow::Result<User> {
    let (uid, gid) = text
        .split_once(':')
        .map_or((text, None), |(uid, gid)| (uid, Some(gid)));
    let number = |text: &str| {
        text.parse::<u32>()
            .with_context(|| format!("--user {text:?} is no number"))
    };
    let mut user = before.clone();
    user.set_uid(number(uid)?);
    if let Some(gid) = gid {
        user.set_gid(number(gid)?);
    }
    Ok(user)
}

/// To all sets but the inheritable one, as a shell's user would expect of "may".
fn add_capabilities(
    before: Option<LinuxCapabilities>,
    names: &[String],
) -> anyhow::Result<LinuxCapabilities> {
    let mut sets = match before {
        Some(sets) => sets,
        None => serde_json::from_str("{}").context("empty capabilities")?,
    };
    let parse = |name: &String| {
        serde_json::from_value::<Capability>(serde_json::Value::String(name.to_uppercase()))
            .with_context(|| format!("unknown capability {name:?}"))
    };
    let added: Capabilities = names.iter().map(parse).collect::<anyhow::Result<_>>()?;
    let with = |set: &Option<Capabilities>| {
        Some(
            set.iter()
                .flatten()
                .chain(&added)
                .copied()
                .collect::<Capabilities>(),
        )
    };
    let (bounding, effective, permitted) = (
        with(sets.bounding()),
        with(sets.effective()),
        with(sets.permitted()),
    );
    // Ambient ones have to be inheritable; runc adds them where the configuration has any inheritable ones.
    if sets.inheritable().is_some() {
        let ambient = with(sets.ambient());
        sets.set_ambient(ambient);
    }
    sets.set_bounding(bounding);
    sets.set_effective(effective);
    sets.set_permitted(permitted);
    Ok(sets)
}
