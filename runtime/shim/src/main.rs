//! `knarr-shim`: started by the engine for one pod, with its listening socket as standard input.

use std::path::PathBuf;
use std::process::ExitCode;

use knarr_oci::sys;

fn main() -> ExitCode {
    // The pod outlives the engine, and lives by what the kernel tells a parent: nothing of who started the engine may reach it,
    // neither ignored signals nor descriptors that somebody waits for to be closed.
    if let Err(error) = sys::settle().and_then(|()| sys::close_all_but(3, &[])) {
        eprintln!("knarr-shim: leave the caller's state behind: {error}");
        return ExitCode::FAILURE;
    }
    for (what, error) in sys::be_ordinary() {
        eprintln!("knarr-shim: the {what} of who started knarr stays: {error}");
    }
    let mut args = std::env::args_os();
    if args.next().as_deref() == Some(knarr_shim::pause::NAME.as_ref()) {
        return knarr_shim::pause::run();
    }
    let (Some(state), None) = (args.next(), args.next()) else {
        eprintln!(
            "usage: knarr-shim OCI-STATE-DIR (started by knarr, with a listening socket as standard input)"
        );
        return ExitCode::from(2);
    };
    // A container's process is a copy of this one until it executes its own program: see knarr_oci::protect.
    if let Err(error) = knarr_oci::protect::run_read_only() {
        eprintln!("knarr-shim: run from a read-only mount: {error}");
        return ExitCode::FAILURE;
    }
    match knarr_shim::serve(PathBuf::from(state)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("knarr-shim: {}", knarr_oci::error::chain(&error));
            ExitCode::FAILURE
        }
    }
}
