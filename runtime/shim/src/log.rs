//! A container's log in CRI's format: `<RFC 3339 time with nanoseconds> <stdout|stderr> <P|F> <text>`.
//!
//! Source: Kubernetes, "CRI container log format" (`design-proposals/node/kubelet-cri-logging.md`).

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::protocol::Rotation;

/// The longest text of one record; a longer line is split into partial ones. Source: containerd, `maxContainerLogLineSize`.
const MAX_TEXT: usize = 16 * 1024;

/// The stream that a text came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// An open log file.
pub struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    /// Bytes that streams have brought.
    taken: u64,
    rotation: Rotation,
    /// Unfinished lines of stdout and stderr.
    pending: [Vec<u8>; 2],
    record: Vec<u8>,
}

impl Log {
    /// Opens the file for appending, making it.
    ///
    /// # Errors
    ///
    /// What open(2) says.
    pub fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        let file = append(path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
            taken: 0,
            rotation,
            pending: [Vec::new(), Vec::new()],
            record: Vec::new(),
        })
    }

    /// Opens the file anew under the same path.
    ///
    /// # Errors
    ///
    /// What open(2) says.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = append(&self.path)?;
        self.size = self.file.metadata()?.len();
        Ok(())
    }

    /// How many bytes the streams have brought.
    pub fn written(&self) -> u64 {
        self.taken
    }

    /// Takes what a stream brought, and writes the lines that are whole.
    ///
    /// # Errors
    ///
    /// What write(2) and rename(2) say; the text that could not be written is lost, the container goes on.
    pub fn take(&mut self, stream: Stream, mut bytes: &[u8]) -> io::Result<()> {
        let now = timestamp(SystemTime::now());
        self.record.clear();
        self.taken += bytes.len() as u64;
        while !bytes.is_empty() {
            let pending = &mut self.pending[stream as usize];
            let room = MAX_TEXT - pending.len();
            // One byte more than fits: a line that just fits ends with the newline behind it.
            let window = &bytes[..bytes.len().min(room + 1)];
            let (text, used, tag) = match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => (&window[..end], end + 1, "F"),
                None if window.len() > room => (&window[..room], room, "P"),
                None => {
                    pending.extend_from_slice(window);
                    break;
                }
            };
            write!(self.record, "{now} {} {tag} ", stream.name())?;
            self.record.append(pending);
            self.record.extend_from_slice(text);
            self.record.push(b'\n');
            bytes = &bytes[used..];
        }
        self.flush()
    }

    /// Writes an unfinished last line at the end of the stream: as a partial one, because no newline ended it, so that readers of
    /// the log get the bytes that were written and no more (containerd, `redirectLogs`).
    ///
    /// # Errors
    ///
    /// What write(2) says.
    pub fn finish(&mut self, stream: Stream) -> io::Result<()> {
        if self.pending[stream as usize].is_empty() {
            return Ok(());
        }
        self.record.clear();
        write!(
            self.record,
            "{} {} P ",
            timestamp(SystemTime::now()),
            stream.name()
        )?;
        self.record.append(&mut self.pending[stream as usize]);
        self.record.push(b'\n');
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.record.is_empty() {
            return Ok(());
        }
        self.file.write_all(&self.record)?;
        self.size += self.record.len() as u64;
        // A burst must not pin its memory.
        self.record.shrink_to(2 * MAX_TEXT);
        if self.size >= self.rotation.max_size {
            self.rotate()
        } else {
            Ok(())
        }
    }

    /// Moves the file to `<path>.<time>`, as the kubelet names rotated logs, and removes the oldest ones.
    fn rotate(&mut self) -> io::Result<()> {
        let mut rotated = self.path.clone().into_os_string();
        rotated.push(format!(".{}", compact(SystemTime::now())));
        fs::rename(&self.path, &rotated)?;
        self.reopen()?;
        let (Some(dir), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Ok(());
        };
        let prefix = format!("{}.", name.to_string_lossy());
        let mut old: Vec<PathBuf> = fs::read_dir(dir)?
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .map(|entry| entry.path())
            .collect();
        old.sort();
        let keep = self.rotation.max_files.saturating_sub(1) as usize;
        for path in &old[..old.len().saturating_sub(keep)] {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    // O_NOFOLLOW: the log directory is ours, but a link put there must not lead the shim elsewhere.
    File::options()
        .create(true)
        .append(true)
        .mode(0o640)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
        .open(path)
}

/// Year, month, day, hour, minute, second in UTC, and nanoseconds. Source: "chrono-compatible low-level date algorithms" (civil_from_days).
fn civil(at: SystemTime) -> ([u64; 6], u32) {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let days = seconds / 86400 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let second = seconds % 86400;
    (
        [
            year,
            month,
            day,
            second / 3600,
            second / 60 % 60,
            second % 60,
        ],
        since.subsec_nanos(),
    )
}

/// RFC 3339 with nine digits of nanoseconds, in UTC.
fn timestamp(at: SystemTime) -> String {
    let ([year, month, day, hour, minute, second], nanos) = civil(at);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// `20060102-150405` and, against two rotations in a second, nanoseconds.
fn compact(at: SystemTime) -> String {
    let ([year, month, day, hour, minute, second], nanos) = civil(at);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}.{nanos:09}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn texts(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| line.split_once(' ').unwrap().1.to_owned())
            .collect()
    }

    #[test]
    fn lines_are_whole_partial_or_finished_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path, Rotation::default()).unwrap();
        log.take(Stream::Stdout, b"one\ntw").unwrap();
        log.take(Stream::Stderr, b"bad\n").unwrap();
        log.take(Stream::Stdout, b"o\n\nlast").unwrap();
        log.finish(Stream::Stdout).unwrap();
        log.finish(Stream::Stderr).unwrap();
        assert_eq!(
            texts(&path),
            [
                "stdout F one",
                "stderr F bad",
                "stdout F two",
                "stdout F ",
                "stdout P last"
            ]
        );
    }

    #[test]
    fn a_long_line_is_split_and_costs_no_more_memory_than_its_parts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path, Rotation::default()).unwrap();
        let long = vec![b'x'; 2 * MAX_TEXT + 5];
        log.take(Stream::Stdout, &long).unwrap();
        log.take(Stream::Stdout, b"\n").unwrap();
        let lines = texts(&path);
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("stdout P ") && lines[1].starts_with("stdout P "));
        assert_eq!(lines[2], "stdout F xxxxx");
    }

    #[test]
    fn a_line_that_just_fits_is_one_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path, Rotation::default()).unwrap();
        let full = vec![b'x'; MAX_TEXT];
        for piece in [&full[..], b"\n", &full[..7], &full[7..], b"y\n", &full[..]] {
            log.take(Stream::Stdout, piece).unwrap();
        }
        log.finish(Stream::Stdout).unwrap();
        let lines: Vec<_> = texts(&path)
            .iter()
            .map(|line| (line[..9].to_owned(), line.len() - 9))
            .collect();
        assert_eq!(
            lines,
            [
                ("stdout F ".to_owned(), MAX_TEXT),
                ("stdout P ".to_owned(), MAX_TEXT),
                ("stdout F ".to_owned(), 1),
                ("stdout P ".to_owned(), MAX_TEXT),
            ]
        );
    }

    #[test]
    fn a_full_file_is_rotated_and_the_oldest_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(
            &path,
            Rotation {
                max_size: 100,
                max_files: 3,
            },
        )
        .unwrap();
        for n in 0..20 {
            log.take(Stream::Stdout, format!("line {n} of the log\n").as_bytes())
                .unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn times_are_utc() {
        let at = UNIX_EPOCH + Duration::new(1_709_210_096, 7);
        assert_eq!(timestamp(at), "2024-02-29T12:34:56.000000007Z");
        assert_eq!(timestamp(UNIX_EPOCH), "1970-01-01T00:00:00.000000000Z");
    }
}
