//! Texts as Go's standard library writes and reads them: clients compare them, byte for byte.

use std::time::Duration;

use icu_properties::CodePointMapData;
use icu_properties::props::GeneralCategory;

/// A duration in whole seconds: `10s`, `1m20s`, `5m0s`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 {
        format!("{seconds}s")
    } else {
        format!("{}m{}s", seconds / 60, seconds % 60)
    }
}

/// A text in quotes, as `%q` writes it: what cannot be printed is escaped, and a space is the only blank that can.
///
/// Source: Go, strconv, `Quote` and `IsPrint`.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            printable if is_print(printable) => quoted.push(printable),
            other => {
                let code = u32::from(other);
                quoted.push_str(&match code {
                    0..0x20 | 0x7f => format!("\\x{code:02x}"),
                    0x80..0x1_0000 => format!("\\u{code:04x}"),
                    _ => format!("\\U{code:08x}"),
                });
            }
        }
    }
    quoted.push('"');
    quoted
}

/// Letters, marks, numbers, punctuation, symbols, and of the blanks only the space.
fn is_print(character: char) -> bool {
    if character.is_ascii() {
        return matches!(character, ' '..='~');
    }
    use GeneralCategory::{
        Control, Format, LineSeparator, ParagraphSeparator, PrivateUse, SpaceSeparator, Surrogate,
        Unassigned,
    };
    !matches!(
        CodePointMapData::<GeneralCategory>::new().get(character),
        Control
            | Format
            | LineSeparator
            | ParagraphSeparator
            | PrivateUse
            | SpaceSeparator
            | Surrogate
            | Unassigned
    )
}

/// The part of a URL that a request line carries, made from what a probe or a hook calls its path.
///
/// The text is read as a URL if it is one: its scheme, host and fragment are dropped, its query is kept as it stands, and the
/// path is escaped anew unless it is well escaped already. What is no URL is a path as a whole.
///
/// Source: kubernetes, pkg/probe/http/request.go, `formatURL`; Go, net/url, `Parse`, `EscapedPath`, `RequestURI`.
pub(crate) fn request_target(text: &str) -> String {
    let (path, query) = parse(text).unwrap_or_else(|| (escape_path(text), None));
    let mut target = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        target.push('/');
    }
    target.push_str(&path);
    if let Some(query) = query {
        target.push('?');
        // Go sends these as they are, and a blank then ends what a server reads; browsers escape them.
        for character in query.chars() {
            match character {
                ' ' | '"' | '<' | '>' => target.push_str(&format!("%{:02X}", u32::from(character))),
                other => target.push(other),
            }
        }
    }
    target
}

/// The escaped path and the query of a URL; `None` where Go's `url.Parse` fails.
fn parse(text: &str) -> Option<(String, Option<String>)> {
    let without_fragment = match text.split_once('#') {
        Some((before, fragment)) => {
            unescape(fragment)?;
            before
        }
        None => text,
    };
    if without_fragment.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return None;
    }
    if without_fragment == "*" {
        return Some(("*".to_owned(), None));
    }
    let (has_scheme, rest) = strip_scheme(without_fragment)?;
    let (rest, query) = match rest.split_once('?') {
        Some((before, query)) => (before, Some(query.to_owned())),
        None => (rest, None),
    };
    let mut path = rest;
    if !rest.starts_with('/') {
        if has_scheme {
            // `scheme:opaque` names no path; such a probe asks for the root.
            return Some((String::new(), query));
        }
        // `a:b` could be a scheme and is none.
        if rest.split('/').next().is_some_and(|s| s.contains(':')) {
            return None;
        }
    } else if let Some(authority) = rest.strip_prefix("//")
        && (has_scheme || !rest.starts_with("///"))
    {
        let end = authority.find('/').unwrap_or(authority.len());
        let (host, after) = authority.split_at(end);
        if host.contains([' ', '<', '>', '"', '%']) {
            return None;
        }
        path = after;
    }
    let plain = unescape(path)?;
    let escaped = if is_well_escaped(path) {
        path.to_owned()
    } else {
        escape_bytes(&plain)
    };
    Some((escaped, query))
}

/// Whether there is a scheme, and what follows it; `None` for an empty scheme.
fn strip_scheme(text: &str) -> Option<(bool, &str)> {
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if index > 0 => {}
            b':' if index > 0 => return Some((true, &text[index + 1..])),
            b':' => return None,
            _ => break,
        }
    }
    Some((false, text))
}

/// The bytes that percent signs stand for; `None` if one is not followed by two hexadecimal digits.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            plain.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        plain.push(u8::try_from(high * 16 + low).ok()?);
    }
    Some(plain)
}

/// Whether all that a path may not hold as it is has been escaped.
fn is_well_escaped(path: &str) -> bool {
    path.bytes().all(|b| {
        is_path_byte(b) || matches!(b, b'%' | b'!' | b'\'' | b'(' | b')' | b'*' | b'[' | b']')
    })
}

fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'_'
                | b'.'
                | b'~'
                | b'$'
                | b'&'
                | b'+'
                | b','
                | b'/'
                | b':'
                | b';'
                | b'='
                | b'@'
        )
}

fn escape_path(text: &str) -> String {
    escape_bytes(text.as_bytes())
}

fn escape_bytes(bytes: &[u8]) -> String {
    let mut escaped = String::with_capacity(bytes.len());
    for byte in bytes {
        if is_path_byte(*byte) {
            escaped.push(char::from(*byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_go() {
        let text: Vec<String> = [10, 80, 300]
            .map(|s| super::duration(Duration::from_secs(s)))
            .to_vec();
        assert_eq!(text, ["10s", "1m20s", "5m0s"]);
    }

    #[test]
    fn texts_are_quoted_as_in_go() {
        for (text, expected) in [
            ("", r#""""#),
            ("plain", r#""plain""#),
            ("it's \"so\" \\", r#""it's \"so\" \\""#),
            (
                "bell\u{7} nbsp\u{a0} zwsp\u{200b}",
                r#""bell\a nbsp\u00a0 zwsp\u200b""#,
            ),
            ("\u{8}\u{c}\n\r\t\u{b}", r#""\b\f\n\r\t\v""#),
            ("\0\u{1b}\u{7f}", r#""\x00\x1b\x7f""#),
            ("\u{85}\u{2028}\u{feff}", r#""\u0085\u2028\ufeff""#),
            (
                "\u{e000}\u{10ffff}\u{e0001}",
                r#""\ue000\U0010ffff\U000e0001""#,
            ),
            (
                "é 日本 😀 e\u{301} \u{301}",
                "\"é 日本 😀 e\u{301} \u{301}\"",
            ),
            ("\u{fffd}\u{3000}\u{ad}", "\"\u{fffd}\\u3000\\u00ad\""),
        ] {
            assert_eq!(quote(text), expected, "{text:?}");
        }
    }

    #[test]
    fn paths_of_probes_become_what_go_asks_for() {
        for (text, expected) in [
            ("", "/"),
            ("/", "/"),
            ("healthz", "/healthz"),
            ("/a b/ok", "/a%20b/ok"),
            ("/a%20b/ok", "/a%20b/ok"),
            ("/a%2Fb", "/a%2Fb"),
            ("/a%2fb c", "/a/b%20c"),
            ("/é", "/%C3%A9"),
            ("/x?a=1&b=%20c", "/x?a=1&b=%20c"),
            ("/x?a b", "/x?a%20b"),
            ("/x?a=\"<b>\"", "/x?a=%22%3Cb%3E%22"),
            ("/x?{a}|[b]^`~\\", "/x?{a}|[b]^`~\\"),
            ("/x?q=é", "/x?q=é"),
            ("/x?", "/x?"),
            ("/x?a?b", "/x?a?b"),
            ("/x#part", "/x"),
            ("/x?a#part?b", "/x?a"),
            ("?a=b", "/?a=b"),
            ("/100%", "/100%25"),
            ("/%zz", "/%25zz"),
            ("/%zz?a=b", "/%25zz%3Fa=b"),
            ("/a\"b<c>|^`{}", "/a%22b%3Cc%3E%7C%5E%60%7B%7D"),
            ("/(a)!*'[]", "/(a)!*'[]"),
            ("/(a) b", "/%28a%29%20b"),
            ("/a;b=c,d:e@f$&+", "/a;b=c,d:e@f$&+"),
            ("/a\\b", "/a%5Cb"),
            ("/a\nb", "/a%0Ab"),
            ("//host/path", "/path"),
            ("///path", "///path"),
            ("http://other:1/path?q", "/path?q"),
            ("http://other", "/"),
            ("1:2/x", "/1:2/x"),
            (":x", "/:x"),
            ("*", "/*"),
        ] {
            assert_eq!(request_target(text), expected, "{text:?}");
            let read = expected.parse::<http::uri::PathAndQuery>();
            assert!(read.is_ok(), "{text:?} cannot be asked for: {read:?}");
        }
    }
}
