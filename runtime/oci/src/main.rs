//! `knarr-oci`: containers by the OCI runtime specification, with runc's command line.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
