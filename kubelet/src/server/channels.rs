//! One exec or attach session, whatever carries its streams.

use bytes::Bytes;
use knarr_engine::types::TerminalSize;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

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

/// Carries the session until its process has ended and all its output is sent, or the client left.
pub(super) async fn carry(session: Session, wire: Wire) {
    let Session {
        stdin,
        stdout,
        stderr,
        mut control,
    } = session;
    let Wire {
        stdin: mut input,
        mut resize,
        out,
    } = wire;
    let typing = async {
        let Some(mut stdin) = stdin else {
            // Read and thrown away: the client may write to a stream that nobody reads.
            while input.recv().await.is_some() {}
            return;
        };
        while let Some(bytes) = input.recv().await {
            // A process that does not read any more is no error of the session.
            if stdin.write_all(&bytes).await.is_err() || stdin.flush().await.is_err() {
                break;
            }
        }
        let _closed = stdin.shutdown().await;
        drop(stdin);
        while input.recv().await.is_some() {}
    };
    let output = async {
        tokio::join!(
            pump(stdout, channel::STDOUT, out.clone()),
            pump(stderr, channel::STDERR, out.clone()),
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
    let typing_forever = async {
        typing.await;
        std::future::pending::<()>().await;
    };
    // When the process has ended, nobody reads what is still typed; when the client left, nothing is left to do.
    let code = tokio::select! {
        code = done => code,
        () = typing_forever => return,
        () = out.closed() => return,
    };
    let status = match code {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(error) => failure(&chain(&error)),
    };
    // Fails only if the client left.
    let _left = out
        .send((channel::ERROR, Bytes::from(status.to_string())))
        .await;
}

/// The status of a session that could not be had.
pub(super) fn failure(message: &str) -> serde_json::Value {
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("error executing command in container: {message}"),
        "reason": "InternalError",
        "details": {"causes": [{"message": message}]},
        "code": 500,
    })
}

async fn pump(reader: Option<Reader>, channel: u8, out: mpsc::Sender<(u8, Bytes)>) {
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
            }
        }
    }
}
