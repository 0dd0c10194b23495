//! Faults of clients that are in use, and what they are spared.

use http::header::{self, HeaderMap};

/// The first minor version of kubectl 1.x that makes its streams before it reads
/// (<https://github.com/kubernetes/kubernetes/pull/131203>).
const MENDED: u32 = 34;

/// Whether the client asks for a WebSocket over which it would lose output.
///
/// kubectl before 1.34 begins to read from a WebSocket a moment before it has made its streams, and discards what comes for one
/// that it does not know yet. How long that moment is, its machine's load decides, and nothing that it sends tells of its end.
/// Refused, it goes over to SPDY, where it opens each stream itself.
pub fn loses_websocket_output(headers: &HeaderMap) -> bool {
    let text = |name| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    text(header::UPGRADE).eq_ignore_ascii_case("websocket")
        && kubectl_minor(text(header::USER_AGENT)).is_some_and(|minor| minor < MENDED)
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
    fn only_old_kubectls_are_refused_a_websocket() {
        let refused = |agent: &str, upgrade: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::USER_AGENT, agent.parse().expect("a value"));
            headers.insert(header::UPGRADE, upgrade.parse().expect("a value"));
            loses_websocket_output(&headers)
        };
        let old = "kubectl/v1.32.4 (linux/amd64) kubernetes/4cb5f07";
        assert!(refused(old, "websocket"));
        assert!(refused(old, "WebSocket"));
        assert!(!refused(old, "SPDY/3.1"));
        assert!(refused("kubectl/v1.33.0", "websocket"));
        assert!(!refused("kubectl/v1.34.0 (linux/amd64)", "websocket"));
        assert!(!refused("kubectl/v1.37.1", "websocket"));
        assert!(!refused("kubectl/v1.x.y", "websocket"));
        assert!(!refused("Mozilla/5.0", "websocket"));
        assert!(!loses_websocket_output(&HeaderMap::new()));
    }
}
