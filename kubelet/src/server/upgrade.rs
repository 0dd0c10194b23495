//! How a request becomes a connection: which protocols are offered, and which one is chosen.

use axum::extract::FromRequestParts;
use axum::extract::ws::WebSocketUpgrade;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};

use super::Refusal;

/// What a client wants to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upgrade {
    Spdy,
    WebSocket,
}

/// What the headers ask for; `None` if for no upgrade that is known.
pub(super) fn of(headers: &HeaderMap) -> Option<Upgrade> {
    let upgrade = headers.get(header::UPGRADE)?.to_str().ok()?;
    if upgrade.eq_ignore_ascii_case("SPDY/3.1") {
        Some(Upgrade::Spdy)
    } else if upgrade.eq_ignore_ascii_case("websocket") {
        Some(Upgrade::WebSocket)
    } else {
        None
    }
}

/// The refusal of a request that asks for no upgrade.
pub(super) fn required() -> Refusal {
    Refusal(
        StatusCode::BAD_REQUEST,
        "Upgrade request required".to_owned(),
    )
}

/// The values of a header that is a list, all its lines together.
pub(super) fn list(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|value| value.trim().to_owned())
        .filter(|value| !value.is_empty())
        .collect()
}

/// The first of the client's protocols that is known, as in Kubernetes; a client that names none gets the one named `""`, if
/// there is one.
pub(super) fn choose(offered: &[String], known: &[&'static str]) -> Option<&'static str> {
    let find = |name: &str| known.iter().copied().find(|protocol| *protocol == name);
    if offered.is_empty() {
        return find("");
    }
    offered.iter().find_map(|offered| find(offered))
}

/// Prepares an upgrade to a WebSocket that speaks one of `known`.
pub(super) async fn websocket(
    parts: &mut Parts,
    known: &[&'static str],
) -> Result<(WebSocketUpgrade, &'static str), Refusal> {
    let offered = list(&parts.headers, &header::SEC_WEBSOCKET_PROTOCOL);
    // In the words of k8s.io/apimachinery/pkg/util/httpstream/wsstream; golang.org/x/net/websocket answers with 403.
    let chosen = choose(&offered, known).ok_or_else(|| {
        let message = format!(
            "requested protocol(s) are not supported: [{}]; supports [{}]",
            offered.join(" "),
            known.join(" ")
        );
        Refusal(StatusCode::FORBIDDEN, message)
    })?;
    let upgrade = WebSocketUpgrade::from_request_parts(parts, &())
        .await
        .map_err(|rejection| Refusal(rejection.status(), rejection.body_text()))?;
    Ok((upgrade.protocols([chosen]), chosen))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_order_decides() {
        let offered = |text: &str| {
            let mut headers = HeaderMap::new();
            if !text.is_empty() {
                headers.append(
                    header::SEC_WEBSOCKET_PROTOCOL,
                    text.parse().expect("a value"),
                );
            }
            list(&headers, &header::SEC_WEBSOCKET_PROTOCOL)
        };
        let known = ["v4.channel.k8s.io", "channel.k8s.io", ""];
        for (text, chosen) in [
            ("channel.k8s.io, v4.channel.k8s.io", Some("channel.k8s.io")),
            ("x,v4.channel.k8s.io", Some("v4.channel.k8s.io")),
            ("", Some("")),
            ("x", None),
        ] {
            assert_eq!(choose(&offered(text), &known), chosen, "{text}");
        }
        assert_eq!(choose(&[], &known[..2]), None);
    }
}
