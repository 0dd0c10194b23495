//! Messages: to standard error, or appended to a file that the caller reads.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

/// How messages look in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people.
    Text,
    /// One object per line, as runc writes them: containerd and Podman show `msg` of the last error.
    Json,
}

/// Where messages go.
#[derive(Clone, Debug)]
pub(super) struct Log {
    file: Option<Arc<File>>,
    format: Format,
    debug: bool,
}

impl Log {
    pub fn open(path: Option<&Path>, format: Format, debug: bool) -> io::Result<Self> {
        let open = |path: &Path| OpenOptions::new().append(true).create(true).open(path);
        let file = path
            .filter(|path| !path.as_os_str().is_empty())
            .map(open)
            .transpose()?;
        Ok(Self {
            file: file.map(Arc::new),
            format,
            debug,
        })
    }

    /// Also to standard error: callers show that as well.
    pub fn error(&self, message: &str) {
        self.write("error", message);
        if self.file.is_some() {
            eprintln!("knarr-oci: {message}");
        }
    }

    /// A command line that nobody understands: to the file only, for it was printed with its hints already.
    pub fn misuse(&self, message: &str) {
        if self.file.is_some() {
            self.write("error", message);
        }
    }

    /// To the file, or to standard error as runc does: the specification has things that must be told, not refused.
    pub fn warn(&self, message: &str) {
        self.write("warning", message);
    }

    pub fn debug(&self, message: &str) {
        if self.debug {
            self.write("debug", message);
        }
    }

    fn write(&self, level: &str, message: &str) {
        let Some(mut file) = self.file.as_deref() else {
            match level {
                "warning" => eprintln!("knarr-oci: warning: {message}"),
                // As runc has them there, for those who look for `level=debug`.
                "debug" => eprint!("{}", text(level, message)),
                _ => eprintln!("knarr-oci: {message}"),
            }
            return;
        };
        let line = match self.format {
            Format::Text => text(level, message),
            Format::Json => {
                let time = knarr_oci::state::now();
                let line = serde_json::json!({ "level": level, "msg": message, "time": time });
                format!("{line}\n")
            }
        };
        // A log that cannot be written has nowhere else to say so.
        let _lost = file.write_all(line.as_bytes());
    }
}

fn text(level: &str, message: &str) -> String {
    let time = knarr_oci::state::now();
    format!("time={time:?} level={level} msg={message:?}\n")
}
