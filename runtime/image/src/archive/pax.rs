//! Records of PAX: names, numbers and attributes that do not fit into a header.

use std::collections::BTreeMap;
use std::io;

use super::header::Header;
use super::malformed;
use super::sparse::{self, Fragment};

const XATTR: &str = "SCHILY.xattr.";

/// The records before one file; the last of a name counts.
#[derive(Default)]
pub(super) struct Records {
    by_name: BTreeMap<String, Vec<u8>>,
    /// Offsets and lengths of form 0.0, which has the same two names again and again.
    numbers: Vec<u64>,
    /// Names of attributes, in order.
    xattrs: Vec<String>,
}

/// What the records say of a sparse file.
pub(super) struct Sparse {
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    /// `None` where the map is before the content.
    pub(super) fragments: Option<Vec<Fragment>>,
}

impl Records {
    /// `<length> <name>=<value>\n`, again and again; the length is that of the whole record, and the value may be anything.
    pub(super) fn parse(mut text: &[u8]) -> io::Result<Self> {
        let mut records = Self::default();
        while !text.is_empty() {
            let (record, rest) = split(text).ok_or_else(|| malformed("a malformed PAX record"))?;
            text = rest;
            let (name, value) = parts(record).ok_or_else(|| malformed("a malformed PAX record"))?;
            records.add(name, value)?;
        }
        Ok(records)
    }

    fn add(&mut self, name: &str, value: &[u8]) -> io::Result<()> {
        let expected = ["GNU.sparse.offset", "GNU.sparse.numbytes"];
        if expected.contains(&name) {
            if name != expected[self.numbers.len() % 2] {
                return Err(malformed("a sparse file whose map is out of order"));
            }
            self.numbers.push(sparse::decimal(value)?);
            return Ok(());
        }
        if let Some(attribute) = name.strip_prefix(XATTR)
            && !self.by_name.contains_key(name)
        {
            self.xattrs.push(attribute.to_owned());
        }
        self.by_name.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    /// An empty value means that the header's counts.
    fn get(&self, name: &str) -> Option<&[u8]> {
        self.by_name
            .get(name)
            .map(Vec::as_slice)
            .filter(|value| !value.is_empty())
    }

    /// A signed decimal number.
    fn number(&self, name: &str) -> io::Result<Option<i64>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let number = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
        number
            .map(Some)
            .ok_or_else(|| malformed("a PAX record that should be a number"))
    }

    /// Puts what the records say in the place of what the header says.
    pub(super) fn apply(&self, header: &mut Header) -> io::Result<()> {
        if let Some(path) = self.get("path") {
            header.path = path.to_owned();
        }
        if let Some(link) = self.get("linkpath") {
            header.link = link.to_owned();
        }
        if let Some(size) = self.number("size")? {
            header.size = size
                .try_into()
                .map_err(|_| malformed("a file of negative size"))?;
        }
        header.uid = self.number("uid")?.unwrap_or(header.uid);
        header.gid = self.number("gid")?.unwrap_or(header.gid);
        if let Some(time) = self.get("mtime") {
            header.modified = std::str::from_utf8(time)
                .ok()
                .and_then(parse_time)
                .ok_or_else(|| malformed("a PAX record that should be a time"))?;
        }
        Ok(())
    }

    /// Source: GNU tar manual, "Storing Sparse Files"; forms 0.0 and 0.1 need not say which they are.
    pub(super) fn sparse(&self) -> io::Result<Option<Sparse>> {
        let version = (self.get("GNU.sparse.major"), self.get("GNU.sparse.minor"));
        let blocks = self.get("GNU.sparse.numblocks");
        let has_map = self.get("GNU.sparse.map").is_some() || !self.numbers.is_empty();
        let leading = match version {
            (None, None) if has_map || blocks.is_some() => false,
            (None, None) => return Ok(None),
            (Some(b"0"), Some(b"0" | b"1")) => false,
            (Some(b"1"), Some(b"0")) => true,
            _ => return Err(malformed("a sparse file of an unknown form")),
        };
        let fragments = if leading {
            None
        } else {
            let numbers = match self.get("GNU.sparse.map") {
                _ if !self.numbers.is_empty() => self.numbers.clone(),
                None => Vec::new(),
                Some(map) => map
                    .split(|byte| *byte == b',')
                    .map(sparse::decimal)
                    .collect::<io::Result<_>>()?,
            };
            let count = sparse::decimal(blocks.unwrap_or_default())?;
            if !numbers.len().is_multiple_of(2) || numbers.len() as u64 / 2 != count {
                return Err(malformed("a sparse file whose map is cut short"));
            }
            Some(sparse::pairs(&numbers))
        };
        let size = self
            .get("GNU.sparse.size")
            .or_else(|| self.get("GNU.sparse.realsize"));
        Ok(Some(Sparse {
            name: self.get("GNU.sparse.name").map(<[u8]>::to_vec),
            size: size.map(sparse::decimal).transpose()?,
            fragments,
        }))
    }

    /// The extended attributes. Unlike other records, one without a value is one.
    pub(super) fn into_xattrs(mut self) -> Vec<(String, Vec<u8>)> {
        let names = std::mem::take(&mut self.xattrs);
        names
            .into_iter()
            .filter_map(|name| {
                let value = self.by_name.remove(&format!("{XATTR}{name}"))?;
                Some((name, value))
            })
            .collect()
    }
}

/// The first record without length and newline, and what comes after it.
fn split(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = text.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&text[..space]).ok()?.parse().ok()?;
    let record = text.get(space + 1..length)?;
    Some((record.strip_suffix(b"\n")?, &text[length..]))
}

fn parts(record: &[u8]) -> Option<(&str, &[u8])> {
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (name, value) = (&record[..equals], &record[equals + 1..]);
    let name = std::str::from_utf8(name).ok()?;
    let is_text = matches!(name, "path" | "linkpath" | "uname" | "gname");
    let has_nul = name.contains('\0') || (is_text && value.contains(&0));
    (!name.is_empty() && !has_nul).then_some((name, value))
}

/// `<seconds>[.<fraction>]`, as in pax(1): seconds, and nanoseconds after them.
fn parse_time(text: &str) -> Option<(i64, u32)> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: i64 = seconds.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanos: u32 = nanos.parse().ok()?;
    // Before 1970 the fraction counts backwards.
    Some(match (seconds.starts_with('-'), nanos) {
        (true, 1..) => (whole.checked_sub(1)?, 1_000_000_000 - nanos),
        _ => (whole, nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_fraction() {
        let table = [
            ("12", Some((12, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("12.1234567891", Some((12, 123_456_789))),
            ("-3.5", Some((-4, 500_000_000))),
            ("-3", Some((-3, 0))),
            ("-0.25", Some((-1, 750_000_000))),
            ("x", None),
            ("1.x", None),
        ];
        for (text, want) in table {
            assert_eq!(parse_time(text), want, "{text}");
        }
    }

    #[test]
    fn records_are_as_long_as_they_say() {
        let records = |text: &[u8]| {
            Records::parse(text).map(|records| records.by_name.into_iter().collect::<Vec<_>>())
        };
        let one = |name: &str, value: &[u8]| vec![(name.to_owned(), value.to_owned())];
        let good: &[(&[u8], _)] = &[
            (b"10 a=b\nc\n\n", one("a", b"b\nc\n")),
            (b"6 a=b\n6 a=c\n", one("a", b"c")),
            (b"5 a=\n", one("a", b"")),
            (b"8 a=b=c\n", one("a", b"b=c")),
            (b"7 a=\0\xff\n", one("a", b"\0\xff")),
            (b"", vec![]),
        ];
        for (text, want) in good {
            assert_eq!(records(text).ok().as_ref(), Some(want), "{text:?}");
        }
        let bad: &[&[u8]] = &[
            b"7 a=b\n",
            b"5 a=b\n",
            b"6 ab\n\n",
            b"5 =b\n",
            b"x a=b\n",
            b"1 a=b\n",
            b"99999999999999999999 a=b\n",
            b"10 path=\0\0\n",
            b"6 a=b\n\0",
        ];
        for text in bad {
            assert!(records(text).is_err(), "{text:?}");
        }
    }
}
