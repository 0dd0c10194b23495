//! `knarr`: command line and wiring only; every part lives in a crate of its own.

mod cli;
mod config;
mod image;
mod kubeconfig;
mod login;
#[cfg(test)]
mod man;
mod node;
mod run;
mod server;
mod token;

use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command, TokenCommand};
use crate::config::Config;

fn main() -> ExitCode {
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
        Command::Up(run) => daemon(&load(run)?, run::Role::Up),
        Command::Server(run) => daemon(&load(run)?, run::Role::Server),
        Command::Node(node) => {
            let join = node::Join {
                server: node.server,
                token: node.token,
            };
            daemon(&load(node.run)?, run::Role::Node(join))
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

fn load(run: cli::Run) -> anyhow::Result<Config> {
    let host_name =
        std::fs::read_to_string("/proc/sys/kernel/hostname").context("read the host's name")?;
    Ok(Config::load(
        run.settings,
        run.config.as_deref(),
        host_name.trim(),
    )?)
}

/// A long-running role: several threads, logs on stderr.
fn daemon(config: &Config, role: run::Role) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env("KNARR_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
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
