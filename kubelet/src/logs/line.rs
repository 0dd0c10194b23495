//! One line of a container's log: `<RFC 3339 time> <stream> <P|F> <text>`.

/// Which of the container's streams a line was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// One line, borrowed from the file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// When it was written, as it stands.
    pub(crate) time: &'a str,
    pub(crate) stream: Stream,
    /// Whether the text goes on in the next line.
    pub(crate) partial: bool,
    /// The text, without its newline.
    pub(crate) text: &'a [u8],
}

impl<'a> Line<'a> {
    /// Reads one whole line, newline included; `None` if it is not one.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let bytes = bytes.strip_suffix(b"\n")?;
        let mut parts = bytes.splitn(4, |b| *b == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?;
        let stream = match parts.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        // Tags after the first, which nothing writes yet, are set off by colons.
        let partial = parts.next()?.split(|b| *b == b':').next()? == b"P";
        Some(Self {
            time,
            stream,
            partial,
            text: parts.next().unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_nonsense_is_not() {
        let line = Line::parse(b"2026-01-01T00:00:00.1Z stderr P a b\n").expect("a line");
        assert_eq!(
            line,
            Line {
                time: "2026-01-01T00:00:00.1Z",
                stream: Stream::Stderr,
                partial: true,
                text: b"a b"
            }
        );
        assert_eq!(Line::parse(b"t stdout F \n").expect("empty").text, b"");
        for bad in [
            &b"t stdout F unfinished"[..],
            b"t other F x\n",
            b"\n",
            b"one\n",
        ] {
            assert_eq!(Line::parse(bad), None);
        }
    }
}
