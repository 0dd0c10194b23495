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

fn read_end(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    // Each line carries a time and a stream before its text.
    let window = (MAX_LOG_MESSAGE + MAX_LOG_LINES * 48) as u64;
    file.seek(SeekFrom::Start(length.saturating_sub(window)))
        .ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    let lines: Vec<Line<'_>> = bytes
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
