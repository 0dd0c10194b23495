//! The program `nft`, which may be slow or stuck, and then is not waited for.

use std::io::{self, Read as _, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long `nft` may take: a second or two where thousands of rules of others are in the way.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a script was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The program `nft` could not be run.
    #[error("run nft (package nftables)")]
    Run(#[source] io::Error),
    /// It did not end, and was killed.
    #[error("nft has not ended after {after:?}")]
    Late {
        /// How long it was waited for.
        after: Duration,
    },
    /// It refused the script.
    #[error("nft refused the ruleset: {output}")]
    Refused {
        /// What it said.
        output: String,
    },
}

/// Has `nft` carry out a script.
///
/// # Errors
///
/// See [`NftError`].
pub fn run(script: &str) -> Result<(), NftError> {
    feed(Command::new("nft").args(["-f", "-"]), script, PATIENCE)
}

/// Runs a program with `script` as its input. One that has not ended after `patience` is killed: every pod's network waits for
/// this one.
fn feed(program: &mut Command, script: &str, patience: Duration) -> Result<(), NftError> {
    let mut child = program
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(NftError::Run)?;
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    let mut stderr = child.stderr.take().expect("stderr is a pipe");
    // A program that is stopped neither reads nor closes a pipe, so each has a thread; killing the program ends them.
    let (ended, sent, output) = std::thread::scope(|scope| {
        let sending = scope.spawn(move || stdin.write_all(script.as_bytes()));
        let reading = scope.spawn(move || {
            let mut output = Vec::new();
            stderr.read_to_end(&mut output).map(|_| output)
        });
        let ended = wait(&mut child, patience);
        let panicked = "neither reading nor writing panics";
        (
            ended,
            sending.join().expect(panicked),
            reading.join().expect(panicked),
        )
    });
    let Some(status) = ended.map_err(NftError::Run)? else {
        return Err(NftError::Late { after: patience });
    };
    if !status.success() {
        let output = output.map_err(NftError::Run)?;
        return Err(NftError::Refused {
            output: String::from_utf8_lossy(&output).trim().to_owned(),
        });
    }
    // A refusal can close the pipe early; then its words matter more than the broken pipe.
    sent.map_err(NftError::Run)
}

/// How a program ended; `None` if it had to be killed.
fn wait(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    match has_ended(child, patience) {
        Ok(true) => child.wait().map(Some),
        unknown => {
            child.kill()?;
            child.wait()?;
            unknown.map(|_| None)
        }
    }
}

/// Waits for a program's end, without taking it.
fn has_ended(child: &Child, patience: Duration) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let descriptor = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let end = Instant::now() + patience;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut polled = [PollFd::new(&descriptor, PollFlags::IN)];
        match poll(&mut polled, Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, input: &str, patience: Duration) -> Result<(), NftError> {
        feed(Command::new("sh").args(["-c", script]), input, patience)
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_though_it_is_stopped_and_reads_nothing() {
        let start = Instant::now();
        let much = "x".repeat(1 << 20);
        let late = shell("kill -STOP $$", &much, Duration::from_millis(300));
        assert!(matches!(late, Err(NftError::Late { .. })), "{late:?}");
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn what_a_program_says_is_told() {
        let much = Duration::from_secs(30);
        assert!(shell("cat > /dev/null", "rules", much).is_ok());
        match shell("echo no >&2; exit 1", &"x".repeat(1 << 20), much) {
            Err(NftError::Refused { output }) => assert_eq!(output, "no"),
            other => panic!("{other:?}"),
        }
    }
}
