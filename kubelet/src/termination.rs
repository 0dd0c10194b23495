//! A container's last words: its termination message.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use knarr_engine::types::{ContainerState, ContainerStatus};

use crate::ctx::Ctx;
use crate::logs::line::Line;
use crate::pod;
use crate::start::termination_log;

/// The most that a message file may hold, in bytes.
const MAX_MESSAGE: u64 = 4096;
/// The most that is taken from the end of the log, in bytes and lines.
const MAX_LOG_MESSAGE: usize = 2048;
const MAX_LOG_LINES: usize = 80;
/// The most that stands before a record's text: a time, a stream and a tag.
const MAX_HEAD: usize = 64;
/// The longest text of one record (`knarr_shim::log`).
const MAX_TEXT: usize = 16 * 1024;

/// What an ended container left in its message file or, if it asked for that and failed, at the end of its log.
pub(crate) fn message(ctx: &Ctx, pod: &Pod, status: &ContainerStatus) -> Option<String> {
    if status.state != ContainerState::Exited {
        return None;
    }
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let path = termination_log(ctx, uid, &status.config.name, status.config.attempt);
    let text = read_start(&path).unwrap_or_default();
    if !text.is_empty() {
        return Some(text);
    }
    let (container, _) = pod::find_container(pod::spec(pod), &status.config.name)?;
    let wants_log =
        container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    if !wants_log || status.exit_code == 0 {
        return None;
    }
    let text = read_end(&status.log_path)?;
    (!text.is_empty()).then_some(text)
}

fn read_start(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path)
        .ok()?
        .take(MAX_MESSAGE)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The end of a log. A line that was split into several records counts as several lines, as in the kubelet.
fn read_end(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    // Enough for all that counts and the record that it begins in, whose own beginning may be cut off.
    let window = MAX_LOG_MESSAGE + MAX_LOG_LINES * MAX_HEAD + MAX_HEAD + MAX_TEXT;
    let start = length.saturating_sub(window as u64);
    file.seek(SeekFrom::Start(start)).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    let mut whole = &bytes[..];
    if start > 0 {
        let cut = bytes.iter().position(|byte| *byte == b'\n')?;
        whole = &bytes[cut + 1..];
    }
    let lines: Vec<Line<'_>> = whole
        .split_inclusive(|b| *b == b'\n')
        .filter_map(Line::parse)
        .collect();
    let mut text = Vec::new();
    for line in lines.iter().skip(lines.len().saturating_sub(MAX_LOG_LINES)) {
        text.extend_from_slice(line.text);
        if !line.partial {
            text.push(b'\n');
        }
    }
    let start = text.len().saturating_sub(MAX_LOG_MESSAGE);
    Some(String::from_utf8_lossy(&text[start..]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end_of(records: &[(&str, String)]) -> String {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("0.log");
        let log: String = records
            .iter()
            .map(|(tag, text)| format!("2026-01-01T00:00:00.000000000Z stdout {tag} {text}\n"))
            .collect();
        std::fs::write(&path, log).expect("written");
        read_end(&path).expect("a log")
    }

    #[test]
    fn the_last_bytes_of_a_long_line_are_a_message() {
        let line = |n| "y".repeat(n);
        let full = |text: &str| format!("{}{text}", line(MAX_LOG_MESSAGE - text.len()));
        let first = || ("F", "start".to_owned());
        #[rustfmt::skip] // A table.
        let rows = [
            (vec![first(), ("F", line(8000) + "END")], full("END\n")),
            (vec![first(), ("P", line(16384)), ("F", line(616) + "END")], full("END\n")),
            (vec![first(), ("P", line(16384)), ("P", line(16384)), ("P", "END".to_owned())], full("END")),
            (vec![first(), ("P", line(16384))], full("")),
            (vec![first(), ("P", "DONE".to_owned())], "start\nDONE".to_owned()),
            (vec![("F", line(16384)), ("F", String::new())], full("\n\n")),
        ];
        for (records, expected) in rows {
            let lengths: Vec<_> = records
                .iter()
                .map(|(tag, text)| (*tag, text.len()))
                .collect();
            assert_eq!(end_of(&records), expected, "{lengths:?}");
        }
    }

    #[test]
    fn no_more_than_eighty_lines_are_a_message() {
        let records: Vec<_> = (0..200).map(|n| ("F", n.to_string())).collect();
        let expected: String = (120..200).map(|n| format!("{n}\n")).collect();
        assert_eq!(end_of(&records), expected);
        let empty = vec![("F", String::new()); 5000];
        assert_eq!(end_of(&empty), "\n".repeat(80));
    }
}
