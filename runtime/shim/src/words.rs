//! What a user reads where a container did not come to run: containerd's and runc's words, which people and programs look for.
//!
//! Source: containerd, `core/runtime/v2` and `cmd/containerd-shim-runc-v2/process`; runc, `libcontainer/process_linux.go`.

use knarr_oci::error::{CreateError, StartError, chain};

/// The runtime could not make the container.
pub fn not_created(error: &CreateError) -> String {
    format!(
        "failed to create container task: OCI runtime create failed: unable to start container process: {}",
        in_init(error)
    )
}

/// The runtime could not start the container.
pub fn not_started(id: &str, error: &StartError) -> String {
    let reason = match error {
        // The file was there at create: what is missing or wrong is its interpreter or its format.
        StartError::Process(error @ CreateError::Execute { .. }) => error.to_string(),
        other => chain(other),
    };
    format!("failed to start container task \"{id}\": OCI runtime start failed: {reason}")
}

/// The runtime could not run one more process in the container.
pub fn not_executed(error: &CreateError) -> String {
    format!(
        "OCI runtime exec failed: exec failed: unable to start container process: {}",
        chain(error)
    )
}

/// An error with its causes; a command is looked for in the container.
fn in_init(error: &CreateError) -> String {
    match error {
        CreateError::Command { .. } => format!("error during container init: {error}"),
        other => chain(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(name: &str, errno: i32) -> CreateError {
        CreateError::Command {
            command: name.to_owned(),
            cause: std::io::Error::from_raw_os_error(errno),
        }
    }

    fn execute(name: &str, errno: i32) -> CreateError {
        CreateError::Execute {
            command: name.to_owned(),
            cause: std::io::Error::from_raw_os_error(errno),
        }
    }

    #[test]
    fn a_command_that_cannot_run_is_told_in_runcs_words() {
        let begin = "failed to create container task: OCI runtime create failed: unable to start container process: \
                     error during container init: ";
        for (name, errno, reason) in [
            (
                "/nope",
                2,
                "exec: \"/nope\": stat /nope: no such file or directory",
            ),
            (
                "nope",
                2,
                "exec: \"nope\": executable file not found in $PATH",
            ),
            (
                "/etc/passwd",
                13,
                "exec: \"/etc/passwd\": permission denied",
            ),
            (
                "/etc",
                21,
                "exec: \"/etc\": is a directory: permission denied",
            ),
        ] {
            assert_eq!(
                not_created(&command(name, errno)),
                format!("{begin}{reason}")
            );
        }
        assert_eq!(
            not_executed(&command("nope", 2)),
            "OCI runtime exec failed: exec failed: unable to start container process: \
             exec: \"nope\": executable file not found in $PATH"
        );
        assert_eq!(
            not_started("x", &StartError::Process(execute("/script", 2))),
            "failed to start container task \"x\": OCI runtime start failed: exec /script: no such file or directory"
        );
        assert_eq!(
            not_started("x", &StartError::Process(execute("/script", 8))),
            "failed to start container task \"x\": OCI runtime start failed: exec /script: exec format error"
        );
    }
}
