//! Reads one container's log: tail, since, limit, follow.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use inotify::{EventStream, Inotify, WatchMask};
use jiff::Timestamp;
use knarr_engine::types::{ContainerId, ContainerState};
use tokio::sync::mpsc;

use super::line::{self, Line};
use crate::runtime::Runtime;

const CHUNK: usize = 64 * 1024;
/// How often a follower checks that the container still runs, should an event have been missed.
const CHECK: Duration = Duration::from_secs(2);

/// What to read of a log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) follow: bool,
    /// Only so many lines from the end.
    pub(crate) tail: Option<u64>,
    /// Only lines from this time on.
    pub(crate) since: Option<Timestamp>,
    /// Each line begins with its time.
    pub(crate) timestamps: bool,
    /// At most so many bytes.
    pub(crate) limit: Option<u64>,
    /// Only what was written to this stream.
    pub(crate) only: Option<line::Stream>,
}

/// The log of one container.
pub(crate) struct Source {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) id: ContainerId,
    pub(crate) path: PathBuf,
}

/// The log's text; ends with the log, or, when following, once the container has ended too.
pub(crate) fn stream(
    source: Source,
    options: Options,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(async move {
        let last = sender.clone();
        if let Err(error) = run(source, options, sender).await {
            // Fails only if nobody reads any more, who then needs no error.
            let _unread = last.send(Err(error)).await;
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}

/// Selects and renders lines.
struct Filter {
    options: Options,
    left: u64,
    in_partial: bool,
    since_reached: bool,
}

impl Filter {
    fn new(options: Options) -> Self {
        let since_reached = options.since.is_none();
        Self {
            left: options.limit.unwrap_or(u64::MAX),
            options,
            in_partial: false,
            since_reached,
        }
    }

    /// Appends what is wanted of one line; returns whether there is room for more.
    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> bool {
        let Some(line) = Line::parse(bytes) else {
            return true;
        };
        if !self.since_reached {
            let time = line.time.parse::<Timestamp>().ok();
            if time
                .zip(self.options.since)
                .is_none_or(|(t, since)| t < since)
            {
                return true;
            }
            self.since_reached = true;
        }
        if self.options.only.is_some_and(|only| only != line.stream) {
            return true;
        }
        let start = out.len();
        if self.options.timestamps && !self.in_partial {
            out.extend_from_slice(line.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(line.text);
        if !line.partial {
            out.push(b'\n');
        }
        self.in_partial = line.partial;
        let added = (out.len() - start) as u64;
        if added >= self.left {
            out.truncate(start + usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left = 0;
            return false;
        }
        self.left -= added;
        true
    }
}

struct Log {
    file: File,
    /// Bytes of a line whose end is not written yet.
    rest: Vec<u8>,
}

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::open(path)?,
            rest: Vec::new(),
        })
    }

    /// Reads the next lines; `None` at the end of what is there, `Some(false)` if the limit is reached.
    fn next(&mut self, filter: &mut Filter, out: &mut Vec<u8>) -> io::Result<Option<bool>> {
        let mut buffer = vec![0; CHUNK];
        let count = self.file.read(&mut buffer)?;
        if count == 0 {
            return Ok(None);
        }
        self.rest.extend_from_slice(&buffer[..count]);
        let whole = self
            .rest
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |at| at + 1);
        for line in self.rest[..whole].split_inclusive(|b| *b == b'\n') {
            if !filter.take(line, out) {
                return Ok(Some(false));
            }
        }
        self.rest.drain(..whole);
        Ok(Some(true))
    }
}

async fn run(
    source: Source,
    options: Options,
    sender: mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let follow = options.follow;
    let mut log = Log::open(&source.path)?;
    if let Some(lines) = options.tail {
        let start = tail_start(&mut log.file, lines)?;
        log.file.seek(SeekFrom::Start(start))?;
    }
    let mut changes = if follow {
        Some(watch(&source.path)?)
    } else {
        None
    };
    let mut filter = Filter::new(options);
    loop {
        // Asked before reading: what is written up to its end is then surely read.
        let running = follow && is_running(&source).await;
        loop {
            let mut out = Vec::new();
            let more = log.next(&mut filter, &mut out)?;
            if !out.is_empty() && sender.send(Ok(Bytes::from(out))).await.is_err() {
                return Ok(());
            }
            match more {
                Some(true) => {}
                Some(false) => return Ok(()),
                None => break,
            }
        }
        let Some(changes) = changes.as_mut().filter(|_| running) else {
            return Ok(());
        };
        // Waking up for nothing does no harm, so nothing is lost with the branch that is dropped.
        tokio::select! {
            _ = changes.next() => {}
            () = tokio::time::sleep(CHECK) => {}
            () = sender.closed() => return Ok(()),
        }
        if rotated(&log.file, &source.path) {
            // The rest of the old file first, then the new one from its start.
            let mut out = Vec::new();
            while log.next(&mut filter, &mut out)? == Some(true) {}
            if !out.is_empty() && sender.send(Ok(Bytes::from(out))).await.is_err() {
                return Ok(());
            }
            if let Ok(new) = Log::open(&source.path) {
                log = new;
            }
        }
    }
}

fn watch(path: &Path) -> io::Result<EventStream<Vec<u8>>> {
    let inotify = Inotify::init()?;
    let directory = path.parent().unwrap_or(path);
    inotify.watches().add(
        directory,
        WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO,
    )?;
    inotify.into_event_stream(vec![0; 4096])
}

async fn is_running(source: &Source) -> bool {
    source
        .runtime
        .container_status(&source.id)
        .await
        .is_ok_and(|s| s.state == ContainerState::Running)
}

fn rotated(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) != (named.dev(), named.ino()),
        _ => false,
    }
}

/// Where the last `lines` lines begin.
fn tail_start(file: &mut File, lines: u64) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    if lines == 0 {
        return Ok(end);
    }
    let mut seen = 0;
    let mut buffer = vec![0; CHUNK];
    let length = end;
    while end > 0 {
        let size = end.min(CHUNK as u64);
        let start = end - size;
        let chunk = &mut buffer[..usize::try_from(size).unwrap_or(CHUNK)];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(chunk)?;
        for (index, _) in chunk.iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
            let at = start + index as u64 + 1;
            // The newline that ends the file ends its last line, and begins none.
            if at == length {
                continue;
            }
            seen += 1;
            if seen == lines {
                return Ok(at);
            }
        }
        end = start;
    }
    Ok(0)
}

/// `sinceSeconds` as a time.
pub(crate) fn seconds_ago(seconds: u64) -> Timestamp {
    let at = SystemTime::now()
        .checked_sub(Duration::from_secs(seconds))
        .unwrap_or(SystemTime::UNIX_EPOCH);
    Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lines: usize) -> String {
        (0..lines)
            .map(|i| format!("2026-01-01T00:00:{i:02}Z stdout F line {i}\n"))
            .collect()
    }

    fn read(text: &str, options: Options) -> String {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("0.log");
        std::fs::write(&path, text).expect("written");
        let mut log = Log::open(&path).expect("opened");
        if let Some(lines) = options.tail {
            let start = tail_start(&mut log.file, lines).expect("tail");
            log.file.seek(SeekFrom::Start(start)).expect("seek");
        }
        let mut filter = Filter::new(options);
        let mut out = Vec::new();
        while log.next(&mut filter, &mut out).expect("read") == Some(true) {}
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn options_select_lines() {
        let text = log(5);
        let default = Options::default();
        assert_eq!(
            read(&text, default.clone()),
            "line 0\nline 1\nline 2\nline 3\nline 4\n"
        );
        assert_eq!(
            read(
                &text,
                Options {
                    tail: Some(2),
                    ..default.clone()
                }
            ),
            "line 3\nline 4\n"
        );
        assert_eq!(
            read(
                &text,
                Options {
                    tail: Some(0),
                    ..default.clone()
                }
            ),
            ""
        );
        assert_eq!(
            read(
                &text,
                Options {
                    tail: Some(9),
                    ..default.clone()
                }
            )
            .lines()
            .count(),
            5
        );
        assert_eq!(
            read(
                &text,
                Options {
                    limit: Some(8),
                    ..default.clone()
                }
            ),
            "line 0\nl"
        );
        let since = "2026-01-01T00:00:03Z".parse().ok();
        assert_eq!(
            read(
                &text,
                Options {
                    since,
                    ..default.clone()
                }
            ),
            "line 3\nline 4\n"
        );
        let stamped = read(
            &text,
            Options {
                timestamps: true,
                tail: Some(1),
                ..default
            },
        );
        assert_eq!(stamped, "2026-01-01T00:00:04Z line 4\n");
    }

    #[test]
    fn parts_of_one_line_are_joined() {
        let text = "t stdout P a\nt stdout F b\nt stderr F c\n";
        let options = Options {
            timestamps: true,
            ..Options::default()
        };
        assert_eq!(read(text, options), "t ab\nt c\n");
        let options = Options {
            only: Some(line::Stream::Stderr),
            ..Options::default()
        };
        assert_eq!(read(text, options), "c\n");
    }
}
