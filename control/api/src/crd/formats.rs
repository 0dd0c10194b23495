//! The formats of strings that kube-apiserver checks (kube-openapi, `validation/strfmt`); others are accepted unseen.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use base64::Engine as _;

/// Whether a text has a format; nothing for a format that is not checked.
pub fn check(format: &str, text: &str) -> Option<bool> {
    // The dashes do not count: `date-time` is `datetime`.
    Some(match format {
        "" => return None,
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "date-time" | "datetime" => timestamp(text).is_some(),
        "duration" => duration(text).is_some() || spoken_duration(text),
        "byte" => base64::engine::general_purpose::STANDARD
            .decode(text)
            .is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text.parse::<ipnet::IpNet>().is_ok(),
        "mac" => is_mac(text),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => is_uuid(text, format),
        "hostname" => is_hostname(text),
        "email" => is_email(text),
        "uri" => is_uri(text),
        "hexcolor" => {
            let digits = text.strip_prefix('#').unwrap_or(text);
            matches!(digits.len(), 3 | 6) && digits.bytes().all(|c| c.is_ascii_hexdigit())
        }
        "bsonobjectid" => text.len() == 24 && text.bytes().all(|c| c.is_ascii_hexdigit()),
        "k8s-short-name" => crate::strategy::validation::dns_label(text).is_empty(),
        "k8s-long-name" => crate::strategy::validation::subdomain(text).is_empty(),
        "password" => true,
        _ => return None,
    })
}

/// Whether a format is one that kube-apiserver knows, checked here or not.
pub fn is_known(format: &str) -> bool {
    const UNCHECKED: [&str; 10] = [
        "creditcard",
        "double",
        "float",
        "int32",
        "int64",
        "isbn",
        "isbn10",
        "isbn13",
        "rgbcolor",
        "ssn",
    ];
    UNCHECKED.contains(&format) || check(format, "").is_some()
}

/// A time in RFC 3339.
pub fn timestamp(text: &str) -> Option<jiff::Timestamp> {
    let date_and_time = text
        .as_bytes()
        .get(10)
        .is_some_and(|c| matches!(c, b'T' | b't'));
    text.parse().ok().filter(|_| date_and_time)
}

/// A duration as Go writes it: `1h30m`, `1.5s`, `-2ms`; nanoseconds.
pub fn duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0_f64;
    let mut whole = 0_i128;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let letters = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(letters);
        let unit = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => Duration::from_secs(1).as_nanos(),
            "m" => Duration::from_secs(60).as_nanos(),
            "h" => Duration::from_secs(3600).as_nanos(),
            _ => return None,
        };
        let unit = i128::try_from(unit).ok()?;
        match number.parse::<i128>() {
            Ok(count) => whole = whole.checked_add(count.checked_mul(unit)?)?,
            Err(_) => {
                let count: f64 = number.parse().ok()?;
                total += count * (unit as f64);
            }
        }
        rest = next;
    }
    let nanoseconds = whole.checked_add(total.round() as i128)?;
    i64::try_from(if negative { -nanoseconds } else { nanoseconds }).ok()
}

/// `3 days`, `1 week`: what the format `duration` allows beside Go's form.
fn spoken_duration(text: &str) -> bool {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let unit = unit.trim_start();
    let known = [
        "ns", "nano", "us", "µs", "micro", "ms", "milli", "s", "sec", "second", "m", "min",
        "minute", "h", "hr", "hour", "d", "day", "w", "wk", "week",
    ];
    text.starts_with(|c: char| c.is_ascii_digit())
        && (known.contains(&unit) || unit.strip_suffix('s').is_some_and(|u| known.contains(&u)))
}

fn is_mac(text: &str) -> bool {
    let separator = if text.contains('-') { '-' } else { ':' };
    let parts: Vec<&str> = text.split(separator).collect();
    matches!(parts.len(), 6 | 8 | 20)
        && (parts.iter()).all(|p| p.len() == 2 && p.bytes().all(|c| c.is_ascii_hexdigit()))
}

fn is_uuid(text: &str, format: &str) -> bool {
    let Ok(uuid) = uuid::Uuid::try_parse(text) else {
        return false;
    };
    match format.strip_prefix("uuid") {
        Some("3") => uuid.get_version_num() == 3,
        Some("4") => uuid.get_version_num() == 4,
        Some("5") => uuid.get_version_num() == 5,
        _ => true,
    }
}

fn is_hostname(text: &str) -> bool {
    let good = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 255 && text.trim_end_matches('.').split('.').all(good)
}

fn is_email(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else {
        return false;
    };
    let plain = |part: &str| !part.is_empty() && !part.contains(|c: char| c.is_whitespace());
    plain(local) && plain(domain) && !local.contains('@')
}

/// Whether a text is a URI with a scheme, or an absolute path (Go's `url.ParseRequestURI`).
fn is_uri(text: &str) -> bool {
    super::cel::url::parse(text).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_from_what_is_none() {
        for (format, text, good) in [
            ("date", "2026-01-02", true),
            ("date", "2026-1-2", false),
            ("date-time", "2026-01-02T03:04:05Z", true),
            ("date-time", "2026-01-02", false),
            ("duration", "1h30m", true),
            ("duration", "3 days", true),
            ("duration", "soon", false),
            ("byte", "aGk=", true),
            ("byte", "aGk", false),
            ("ipv4", "10.0.0.1", true),
            ("ipv4", "::1", false),
            ("ipv6", "::1", true),
            ("cidr", "10.0.0.0/8", true),
            ("cidr", "10.0.0.0", false),
            ("mac", "00:1b:44:11:3a:b7", true),
            ("uuid", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", true),
            ("uuid4", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", false),
            ("hostname", "a-b.example.com", true),
            ("hostname", "-a", false),
            ("email", "a@b.c", true),
            ("email", "a b@c", false),
            ("uri", "https://example.com/x?y=z", true),
            ("uri", "example.com", false),
        ] {
            assert_eq!(check(format, text), Some(good), "{format} {text:?}");
        }
        assert_eq!(check("int32", "x"), None);
    }

    #[test]
    fn durations_are_gos() {
        for (text, nanoseconds) in [
            ("0", Some(0)),
            ("1.5s", Some(1_500_000_000)),
            ("-2ms", Some(-2_000_000)),
            ("1h1m1s", Some(3_661_000_000_000)),
            ("9223372036855s", None),
            ("1h99999999999999999999999999999999999999999999.5h", None),
            ("1", None),
            ("", None),
        ] {
            assert_eq!(duration(text), nanoseconds, "{text:?}");
        }
    }
}
