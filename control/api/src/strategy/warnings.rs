//! Warnings that several kinds share (apimachinery `util/validation`).

use std::net::IpAddr;

use ipnet::IpNet;

/// A list as Go prints it, which warnings show.
pub fn go_list(items: &[String]) -> String {
    format!("[{}]", items.join(" "))
}

/// The address in the form that everybody reads alike: IPv4 in IPv6 as IPv4.
fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// What is odd about an address that is accepted: another text than everybody writes for it.
pub fn address(path: &str, text: &str) -> Option<String> {
    let parsed: IpAddr = text.parse().ok()?;
    let shown = plain(parsed).to_string();
    if plain(parsed) != parsed {
        return Some(format!(
            "{path}: non-standard IP address {text:?} will be considered invalid in a future Kubernetes release: use {shown:?}"
        ));
    }
    (shown != text).then(|| {
        format!("{path}: IPv6 address {text:?} should be in RFC 5952 canonical format ({shown:?})")
    })
}

/// What is odd about a network that is accepted: bits behind its prefix, another text than everybody writes.
pub fn network(path: &str, text: &str) -> Vec<String> {
    let Ok(parsed) = text.trim().parse::<IpNet>() else {
        return Vec::new();
    };
    let mut warnings = Vec::new();
    if parsed.addr() != parsed.network() {
        warnings.push(format!(
            "{path}: CIDR value {text:?} is ambiguous in this context (should be {:?} or {:?}?)",
            parsed.trunc().to_string(),
            format!("{}/{}", parsed.addr(), parsed.max_prefix_len())
        ));
        return warnings;
    }
    let shown = parsed.to_string();
    if parsed.addr().is_ipv6() && shown != text {
        warnings.push(format!(
            "{path}: IPv6 CIDR value {text:?} should be in RFC 5952 canonical format ({shown:?})"
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_written_oddly_is_warned_about() {
        #[rustfmt::skip] // One address a line.
        let cases = [
            ("192.0.2.1", None),
            ("2001:db8::1", None),
            ("2001:DB8:0::1", Some(r#"p: IPv6 address "2001:DB8:0::1" should be in RFC 5952 canonical format ("2001:db8::1")"#)),
            ("::ffff:192.0.2.1", Some(r#"p: non-standard IP address "::ffff:192.0.2.1" will be considered invalid in a future Kubernetes release: use "192.0.2.1""#)),
        ];
        for (text, wanted) in cases {
            assert_eq!(address("p", text).as_deref(), wanted, "{text}");
        }
        assert!(network("p", "192.0.2.0/24").is_empty());
        assert_eq!(
            network("p", "192.0.2.1/24"),
            [
                r#"p: CIDR value "192.0.2.1/24" is ambiguous in this context (should be "192.0.2.0/24" or "192.0.2.1/32"?)"#
            ]
        );
    }
}
