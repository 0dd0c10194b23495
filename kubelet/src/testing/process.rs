//! Processes that exist only in memory, for tests of exec and attach.

use std::time::Duration;

use async_trait::async_trait;
use knarr_engine::types::TerminalSize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::sync::{mpsc, watch};

use crate::runtime::{Reader, RuntimeError, Session, SessionControl, StreamRequest, Writer};

/// What a pipe holds, in bytes.
const PIPE: usize = 4096;

struct Control {
    sizes: mpsc::Sender<TerminalSize>,
    code: watch::Receiver<Option<i32>>,
}

#[async_trait]
impl SessionControl for Control {
    async fn resize(&mut self, size: TerminalSize) -> Result<(), RuntimeError> {
        // A process that does not ask for its size has none to be told of.
        let _unasked = self.sizes.send(size).await;
        Ok(())
    }

    async fn wait(&mut self) -> Result<i32, RuntimeError> {
        let ended = self.code.wait_for(Option::is_some).await;
        let failed = |_| RuntimeError::Failed {
            message: "the process is lost".to_owned(),
        };
        Ok(ended.map_err(failed)?.unwrap_or_default())
    }
}

/// Runs a command. `input_ended` turns true when a process has read its input to the end.
///
/// - `say OUT ERR CODE` writes to both outputs and ends with the code,
/// - `cat` copies its input, to the end,
/// - `line` copies one line,
/// - `flood N` writes N bytes,
/// - `size` writes the size of its terminal, once it is told one,
/// - `wait` writes `ready`, reads its input to the end, and then does not end.
pub(crate) fn run(
    request: &StreamRequest,
    input_ended: watch::Sender<bool>,
) -> Result<Session, RuntimeError> {
    let command = request.command.clone();
    let known = ["say", "cat", "line", "flood", "size", "wait"];
    let name = command.first().cloned().unwrap_or_default();
    if !known.contains(&&*name) {
        return Err(RuntimeError::Failed {
            message: format!("exec: {name:?}: executable file not found in $PATH"),
        });
    }
    let (stdin, input) = tokio::io::duplex(PIPE);
    let (output, stdout) = tokio::io::duplex(PIPE);
    let (errors, stderr) = tokio::io::duplex(PIPE);
    let (sizes, told) = mpsc::channel(4);
    let (ended, code) = watch::channel(None);
    tokio::spawn(async move {
        let code = process(&command, input, output, errors, told, &input_ended).await;
        ended.send_replace(Some(code));
    });
    Ok(Session {
        stdin: request.stdin.then(|| Box::new(stdin) as Writer),
        stdout: request.stdout.then(|| Box::new(stdout) as Reader),
        stderr: request.stderr.then(|| Box::new(stderr) as Reader),
        control: Box::new(Control { sizes, code }),
    })
}

async fn process(
    command: &[String],
    mut input: DuplexStream,
    mut output: DuplexStream,
    mut errors: DuplexStream,
    mut sizes: mpsc::Receiver<TerminalSize>,
    input_ended: &watch::Sender<bool>,
) -> i32 {
    // A process whose output nobody reads dies of SIGPIPE.
    const BROKEN: i32 = 141;
    let argument = |n: usize| command.get(n).map(String::as_str).unwrap_or_default();
    let written = match argument(0) {
        "say" => {
            async {
                output.write_all(argument(1).as_bytes()).await?;
                // Nobody need read its errors.
                let _unread = errors.write_all(argument(2).as_bytes()).await;
                Ok(argument(3).parse().unwrap_or_default())
            }
            .await
        }
        "cat" => {
            let copied = tokio::io::copy(&mut input, &mut output).await;
            input_ended.send_replace(true);
            copied.map(|_| 0)
        }
        "line" => {
            async {
                let mut line = String::new();
                BufReader::new(&mut input).read_line(&mut line).await?;
                output.write_all(line.as_bytes()).await?;
                Ok(0)
            }
            .await
        }
        "flood" => {
            async {
                let piece: Vec<u8> = (0..1 << 16).map(|n: u32| (n % 251) as u8).collect();
                let mut left: usize = argument(1).parse().unwrap_or_default();
                while left > 0 {
                    let now = left.min(piece.len());
                    output.write_all(&piece[..now]).await?;
                    left -= now;
                }
                Ok(0)
            }
            .await
        }
        "size" => {
            async {
                let Some(size) = sizes.recv().await else {
                    return Ok(1);
                };
                let text = format!("{}x{}", size.width, size.height);
                output.write_all(text.as_bytes()).await?;
                Ok(0)
            }
            .await
        }
        _ => {
            // A client shows with this that its session has begun.
            let _unread = output.write_all(b"ready").await;
            let mut all = Vec::new();
            let read = input.read_to_end(&mut all).await;
            input_ended.send_replace(true);
            tokio::time::sleep(Duration::from_secs(3600)).await;
            read.map(|_| 0)
        }
    };
    written.unwrap_or(BROKEN)
}
