//! What clients that are in use do, and what follows from it.

use axum::http::header::{self, HeaderMap};

/// The first minor version of kubectl 1.x whose `run -i` prints the log before it attaches
/// (<https://github.com/kubernetes/kubernetes/pull/136010>).
const READS_LOGS_FIRST: u32 = 36;

/// Whether the client is a kubectl whose `run -i` shows nothing of a command that has ended before it could attach.
///
/// A later one has printed the log already, and would print it twice; what it does when it is refused is its own matter.
pub fn comes_late(headers: &HeaderMap) -> bool {
    headers
        .get(header::USER_AGENT)
        .and_then(|agent| agent.to_str().ok())
        .and_then(kubectl_minor)
        .is_some_and(|minor| minor < READS_LOGS_FIRST)
}

/// The minor version of `kubectl/v1.32.4 (linux/amd64) kubernetes/4cb5f07`.
fn kubectl_minor(agent: &str) -> Option<u32> {
    let (minor, _patch) = agent.strip_prefix("kubectl/v1.")?.split_once('.')?;
    minor.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kubectls_that_do_not_read_the_log_come_late() {
        let late = |agent: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::USER_AGENT, agent.parse().expect("a value"));
            comes_late(&headers)
        };
        assert!(late("kubectl/v1.20.2 (linux/amd64) kubernetes/faecb19"));
        assert!(late("kubectl/v1.35.9"));
        assert!(!late("kubectl/v1.36.0 (linux/amd64) kubernetes/0000000"));
        assert!(!late("kubectl/v1.x.y"));
        assert!(!late("e2e.test/v1.20.2 (linux/amd64)"));
        assert!(!comes_late(&HeaderMap::new()));
    }
}
