//! URLs as Go's `url.ParseRequestURI` reads them: absolute, or an absolute path.

/// The parts of a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// `https`; empty for a path.
    pub scheme: String,
    /// `example.com:80`, without the user.
    pub host: String,
    /// `/a%20b`, as it was written.
    pub path: String,
    /// What stands behind the question mark.
    pub query: String,
    /// The whole text.
    pub text: String,
}

impl Url {
    /// The host without its port, and without brackets.
    pub fn hostname(&self) -> &str {
        let host = self.split().0;
        host.strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host)
    }

    /// The port; empty for none.
    pub fn port(&self) -> &str {
        self.split().1
    }

    fn split(&self) -> (&str, &str) {
        match self.host.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port),
            _ => (&self.host, ""),
        }
    }

    /// The parameters of the query in order.
    pub fn parameters(&self) -> impl Iterator<Item = (String, String)> {
        self.query
            .split('&')
            .filter(|pair| !pair.is_empty() && !pair.contains(';'))
            .filter_map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                let text = |part: &str| unescape(&part.replace('+', " "));
                Some((text(name)?, text(value)?))
            })
    }
}

/// Reads a URL; nothing for what is none.
pub fn parse(text: &str) -> Option<Url> {
    if text.is_empty() || text.bytes().any(|c| c < b' ' || c == 0x7f || c == b' ') {
        return None;
    }
    let (scheme, rest) = match text.split_once(':') {
        Some((scheme, rest)) if is_scheme(scheme) => (scheme.to_ascii_lowercase(), rest),
        _ => (String::new(), text),
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = match rest.strip_prefix("//") {
        Some(rest) if !scheme.is_empty() => {
            let end = rest.find('/').unwrap_or(rest.len());
            rest.split_at(end)
        }
        _ if rest.starts_with('/') => ("", rest),
        // `mailto:a@b` is opaque; a relative path is no URL.
        _ if !scheme.is_empty() && !rest.is_empty() => ("", ""),
        _ => return None,
    };
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    let port = match host.rsplit_once(':') {
        Some((_, port)) if !port.contains(']') => port,
        _ => "",
    };
    let good = port.bytes().all(|c| c.is_ascii_digit())
        && unescape(path).is_some()
        && !host.contains(['<', '>', '"', '\\', '^', '`', '{', '|', '}'])
        && host.starts_with('[') == host.contains(']');
    good.then(|| Url {
        scheme,
        host: host.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        text: text.to_owned(),
    })
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"+-.".contains(&c))
}

fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let pair = [bytes.next()?, bytes.next()?];
        out.extend(hex::decode(pair).ok()?);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_have_their_parts() {
        let url = parse("https://user@example.com:80/a%20b?k1=a&k2=b%21&k1=c").expect("a URL");
        assert_eq!(
            (
                &*url.scheme,
                &*url.host,
                url.hostname(),
                url.port(),
                &*url.path
            ),
            ("https", "example.com:80", "example.com", "80", "/a%20b")
        );
        let pairs: Vec<_> = url.parameters().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(pairs, ["k1=a", "k2=b!", "k1=c"]);
        let six = parse("http://[::1]:8080/").expect("a URL");
        assert_eq!((six.hostname(), six.port()), ("::1", "8080"));
    }

    #[test]
    fn what_is_no_url_is_told() {
        for text in [
            "",
            "example.com",
            "a/b",
            "http://a b",
            "http://x:y/",
            "/%zz",
            "../x",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        for text in ["/a/b", "mailto:a@b.c", "https://x"] {
            assert!(parse(text).is_some(), "{text}");
        }
    }
}
