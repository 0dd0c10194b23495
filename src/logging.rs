//! The log: on standard error, one line an event, each with the module that it comes from (`knarr_kubelet::pod_task`).

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::str::FromStr as _;

use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// How a line is written.
#[derive(clap::ValueEnum, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// An object of JSON, for programs.
    Json,
}

/// What is logged, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Logging {
    /// How a line is written.
    pub format: Format,
    /// What is logged: `debug`, or `info,knarr_kubelet=debug`; none for what the command thinks right, or `KNARR_LOG` says.
    pub level: Option<String>,
}

/// Whether a filter means something.
///
/// # Errors
///
/// What is wrong with it.
pub fn check(level: &str) -> Result<(), String> {
    // A word alone would be taken for a module, whose every line is logged.
    let words = level.split(',').filter(|part| !part.contains('='));
    let unknown = words.filter(|word| LevelFilter::from_str(word.trim()).is_err());
    if unknown.count() == 0 && EnvFilter::try_new(level).is_ok() {
        return Ok(());
    }
    Err(format!(
        "{level:?} is neither a level (error, warn, info, debug, trace, off) nor a list of module=level"
    ))
}

impl Logging {
    /// Starts the log; without another word it has what is `usual`.
    pub fn start(&self, usual: &str) {
        let filter = match &self.level {
            Some(level) => EnvFilter::new(level),
            None => EnvFilter::try_from_env("KNARR_LOG").unwrap_or_else(|_| EnvFilter::new(usual)),
        };
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr);
        match self.format {
            Format::Json => log.json().init(),
            Format::Text => {
                let no_color = std::env::var_os("NO_COLOR");
                let coloured = coloured(std::io::stderr().is_terminal(), no_color.as_deref());
                log.with_ansi(coloured).init();
            }
        }
    }
}

/// Whether lines have colours: for who looks on, not for files and journals (<https://no-color.org>).
fn coloured(terminal: bool, no_color: Option<&OsStr>) -> bool {
    terminal && no_color.is_none_or(OsStr::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_terminal_has_colours_and_only_if_it_likes() {
        assert!(coloured(true, None) && coloured(true, Some(OsStr::new(""))));
        assert!(!coloured(true, Some(OsStr::new("1"))));
        assert!(!coloured(false, None) && !coloured(false, Some(OsStr::new(""))));
    }

    #[test]
    fn a_level_is_one_or_a_list_by_module() {
        for good in [
            "debug",
            "INFO",
            "info,knarr_kubelet=debug",
            "knarr_api::http=trace",
            "off",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["loud", "knarr_kubelet=loud", "=="] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
