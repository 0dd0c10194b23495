//! One exec or attach session, whatever carries its streams.

use std::time::Duration;

use bytes::Bytes;
use knarr_engine::types::TerminalSize;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::runtime::{Reader, Session, chain};

/// The numbers of the streams in `*.channel.k8s.io`.
pub(super) mod channel {
    pub(in crate::server) const STDIN: u8 = 0;
    pub(in crate::server) const STDOUT: u8 = 1;
    pub(in crate::server) const STDERR: u8 = 2;
    pub(in crate::server) const ERROR: u8 = 3;
    pub(in crate::server) const RESIZE: u8 = 4;
    /// `v5` only: the next byte names a stream that the client closes.
    pub(in crate::server) const CLOSE: u8 = 255;
}

/// The client's end of a session.
pub(super) struct Wire {
    /// What the client types; closed at its end.
    pub(super) stdin: mpsc::Receiver<Bytes>,
    /// Sizes of the client's terminal.
    pub(super) resize: mpsc::Receiver<TerminalSize>,
    /// What the client is told, by channel.
    pub(super) out: mpsc::Sender<(u8, Bytes)>,
}

/// What a session is, apart from its streams.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    pub(super) mode: Mode,
    /// The command of an exec.
    pub(super) command: Vec<String>,
    /// Whether the session ends with the client's input. containerd ends an attach then, unless it is the container's input that
    /// ends too (`stdinOnce` without a terminal): its output goes on until the container's end.
    pub(super) ends_with_input: bool,
    /// How long nothing may be typed or taken before the session is over, so that a client that has stopped does not hold up the
    /// container it is attached to for ever.
    pub(super) idle: Duration,
}

/// The kubelet's `streamingConnectionIdleTimeout`.
pub(super) const IDLE: Duration = Duration::from_secs(4 * 60 * 60);

/// Which kind of session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Exec,
    Attach,
}

/// What came of a session.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Success,
    /// The command ended with another exit code than 0.
    Exit {
        command: Vec<String>,
        code: i32,
    },
    /// The session could not be had, or broke.
    Failed {
        mode: Mode,
        message: String,
    },
}

/// How the error channel says what came of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// A `Status` as JSON, from version 4 of the protocol on.
    Status,
    /// Nothing on success, a text otherwise: versions 1 to 3.
    Text,
}

impl Outcome {
    /// What goes to the error channel; `None` if nothing does.
    ///
    /// Source: kubernetes, pkg/kubelet/cri/streaming/remotecommand (`exec.go`, `attach.go`, `v1WriteStatusFunc`, `v4WriteStatusFunc`)
    /// and containerd's words for an exit code.
    pub(super) fn told(&self, ending: Ending) -> Option<Bytes> {
        let status = match self {
            Self::Success => json!({"metadata": {}, "status": "Success"}),
            Self::Exit { command, code } => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!(
                    "command terminated with non-zero exit code: error executing command [{}], exit code {code}",
                    command.join(" ")
                ),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failed { mode, message } => {
                let what = match mode {
                    Mode::Exec => "error executing command in container",
                    Mode::Attach => "error attaching to container",
                };
                let message = format!("{what}: {message}");
                json!({
                    "metadata": {},
                    "status": "Failure",
                    "message": format!("Internal error occurred: {message}"),
                    "reason": "InternalError",
                    "details": {"causes": [{"message": message}]},
                    "code": 500,
                })
            }
        };
        match ending {
            Ending::Status => Some(status.to_string().into()),
            Ending::Text if *self == Self::Success => None,
            Ending::Text => Some(
                status["message"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
                    .into(),
            ),
        }
    }
}

/// A message of the resize channel.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Reads a message of the resize channel.
pub(super) fn parse_size(bytes: &[u8]) -> Option<TerminalSize> {
    let size: Size = serde_json::from_slice(bytes).ok()?;
    Some(TerminalSize {
        width: size.width,
        height: size.height,
    })
}

/// When something was typed or taken last.
struct Activity(Mutex<Instant>);

impl Activity {
    fn now(&self) {
        *self.0.lock() = Instant::now();
    }

    /// Waits until nothing has happened for so long.
    async fn none_for(&self, idle: Duration) {
        loop {
            let end = *self.0.lock() + idle;
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

/// Opens a session and carries it until its process has ended and all its output is sent. `None` if the client left before, or
/// did nothing for too long.
pub(super) async fn carry<F>(open: F, kind: Kind, wire: Wire) -> Option<Outcome>
where
    F: Future<Output = Result<Session, String>>,
{
    let mode = kind.mode;
    let failed = |message| Outcome::Failed { mode, message };
    let Wire {
        stdin: mut input,
        mut resize,
        out,
    } = wire;
    let session = tokio::select! {
        session = open => session,
        () = out.closed() => return None,
    };
    let Session {
        stdin,
        stdout,
        stderr,
        mut control,
    } = match session {
        Ok(session) => session,
        Err(message) => return Some(failed(message)),
    };
    let active = Activity(Mutex::new(Instant::now()));
    let typing = async {
        if let Some(mut stdin) = stdin {
            while let Some(bytes) = input.recv().await {
                active.now();
                // A process that does not read any more is no error of the session.
                if stdin.write_all(&bytes).await.is_err() || stdin.flush().await.is_err() {
                    break;
                }
            }
            let _closed = stdin.shutdown().await;
        }
        // Read and thrown away: the client may write to a stream that nobody reads.
        while input.recv().await.is_some() {}
        if !kind.ends_with_input {
            std::future::pending::<()>().await;
        }
    };
    let output = async {
        tokio::join!(
            pump(stdout, channel::STDOUT, out.clone(), &active),
            pump(stderr, channel::STDERR, out.clone(), &active),
        );
    };
    let ended = async {
        let mut sizes_open = true;
        loop {
            // `wait` may be called again, and a size is taken only when it is there.
            tokio::select! {
                code = control.wait() => break code,
                size = resize.recv(), if sizes_open => match size {
                    Some(size) => {
                        if let Err(error) = control.resize(size).await {
                            tracing::debug!(error = chain(&error), "resize a terminal");
                        }
                    }
                    None => sizes_open = false,
                },
            }
        }
    };
    let done = async {
        let (code, ()) = tokio::join!(ended, output);
        code
    };
    // When the process has ended, nobody reads what is still typed; when the client left, nothing is left to do.
    let code = tokio::select! {
        code = done => code,
        () = typing => return Some(Outcome::Success),
        () = out.closed() => return None,
        () = active.none_for(kind.idle) => return None,
    };
    Some(match code {
        // How a container ends is told by its pod's status.
        Ok(_) if mode == Mode::Attach => Outcome::Success,
        Ok(0) => Outcome::Success,
        Ok(code) => Outcome::Exit {
            command: kind.command,
            code,
        },
        Err(error) => failed(chain(&error)),
    })
}

async fn pump(
    reader: Option<Reader>,
    channel: u8,
    out: mpsc::Sender<(u8, Bytes)>,
    active: &Activity,
) {
    let Some(mut reader) = reader else { return };
    let mut buffer = vec![0; 32 * 1024];
    loop {
        match reader.read(&mut buffer).await {
            // A terminal whose last process is gone answers with an error (EIO); it is its end.
            Ok(0) | Err(_) => return,
            Ok(count) => {
                if out
                    .send((channel, Bytes::copy_from_slice(&buffer[..count])))
                    .await
                    .is_err()
                {
                    return;
                }
                active.now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::StreamRequest;

    #[tokio::test]
    async fn a_client_that_takes_nothing_any_more_is_let_go() {
        let request = StreamRequest {
            command: vec!["flood".to_owned(), (64 << 20).to_string()],
            tty: false,
            stdin: false,
            stdout: true,
            stderr: false,
        };
        let (ended, _) = tokio::sync::watch::channel(false);
        let session = crate::testing::process::run(&request, ended);
        let (_typed, stdin) = mpsc::channel(1);
        let (_sized, resize) = mpsc::channel(1);
        let (out, mut taken) = mpsc::channel(1);
        let kind = Kind {
            mode: Mode::Attach,
            command: Vec::new(),
            ends_with_input: false,
            idle: Duration::from_secs(1),
        };
        let wire = Wire { stdin, resize, out };
        let open = async { session.map_err(|error| chain(&error)) };
        let slow = async {
            // As long as something is taken, however slowly, it goes on.
            for _ in 0..8 {
                tokio::time::sleep(Duration::from_millis(200)).await;
                assert!(taken.recv().await.is_some());
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            outcome = carry(open, kind, wire) => assert_eq!(outcome, None),
            () = slow => {}
            () = tokio::time::sleep(Duration::from_secs(20)) => panic!("it is waited for"),
        }
        assert!(taken.recv().await.is_some(), "what was sent before");
        while taken.try_recv().is_ok() {}
        assert_eq!(
            taken.try_recv(),
            Err(mpsc::error::TryRecvError::Disconnected)
        );
    }
}
