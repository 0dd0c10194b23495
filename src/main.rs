//! `knarr`: command line and wiring only; every part lives in a crate of its own.

mod cli;
mod config;
mod data_dir;
mod image;
mod kubeconfig;
mod logging;
mod login;
#[cfg(test)]
mod man;
mod node;
mod panics;
mod run;
mod server;
mod token;

use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser};

use crate::cli::{Cli, Command, TokenCommand};
use crate::config::Config;

fn main() -> ExitCode {
    // Before there are threads: the mask of file modes and the dispositions of signals are those of all. A descriptor of the
    // caller's stays open for as long as this program runs (a lock, say), and not for as long as the pods do.
    let settled = knarr_oci::sys::settle();
    if let Err(error) = settled.and_then(|()| knarr_oci::sys::close_range_cloexec(3)) {
        eprintln!("knarr: leave the caller's state behind: {error}");
        return ExitCode::FAILURE;
    }
    let cli = Cli::parse();
    match execute(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("knarr: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Up(run) => daemon(&load_with(run, DAEMON)?, run::Role::Up),
        Command::Server(run) => daemon(&load_with(run, DAEMON)?, run::Role::Server),
        Command::Node(node) => {
            let join = node::Join {
                server: node.server,
                token: node.token,
            };
            daemon(&load_with(node.run, DAEMON)?, run::Role::Node(join))
        }
        Command::Image(args) => short(image::execute(args.command)),
        Command::Token(args) => match args.command {
            TokenCommand::Create { ttl, run } => short(token::create(&load(run)?, &ttl)),
        },
        Command::Kubeconfig(run) => kubeconfig::print(&load(run)?),
        Command::Version => {
            println!(
                "knarr {} (Kubernetes {})",
                env!("CARGO_PKG_VERSION"),
                knarr_api::VERSION
            );
            Ok(())
        }
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "knarr", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// What a role logs that runs on.
const DAEMON: &str = "info";

/// The configuration of a command that ends; its log has what went wrong.
fn load(run: cli::Run) -> anyhow::Result<Config> {
    load_with(run, "warn")
}

/// The configuration; the log is started with it.
fn load_with(run: cli::Run, usual_level: &str) -> anyhow::Result<Config> {
    let host_name =
        std::fs::read_to_string("/proc/sys/kernel/hostname").context("read the host's name")?;
    let config = Config::load(run.settings, run.config.as_deref(), host_name.trim())?;
    config.logging.start(usual_level);
    Ok(config)
}

/// A long-running role: several threads.
fn daemon(config: &Config, role: run::Role) -> anyhow::Result<()> {
    panics::log();
    let parts = match role {
        run::Role::Up => [data_dir::SERVER, data_dir::NODE].concat(),
        run::Role::Server => data_dir::SERVER.to_vec(),
        run::Role::Node(_) => data_dir::NODE.to_vec(),
    };
    data_dir::close(&config.data_dir, &parts)?;
    tls();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8)))
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(run::run(config, role))
}

/// A command that ends: one thread.
fn short(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tls();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(work)
}

/// Chooses ring for all of rustls, before anything speaks TLS.
fn tls() {
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        tracing::debug!("a TLS provider is installed already");
    }
}
