//! The block before each file: which fields are where, and how numbers are written in them.

use std::io;

use super::malformed;

/// Everything in an archive takes a multiple of this.
pub(crate) const BLOCK: usize = 512;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
    /// A kind that no image has: its letter.
    Other(u8),
}

/// An entry that describes the next one, or all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Special {
    Records,
    GlobalRecords,
    LongPath,
    LongLink,
}

/// A header, before and after what other entries said of it.
pub(super) struct Header {
    letter: u8,
    pub(super) kind: Kind,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) modified: (i64, u32),
    pub(super) device: (i64, i64),
}

/// How the fields behind the link's name are laid out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl Form {
    fn of(block: &[u8; BLOCK]) -> Self {
        match (&block[257..263], &block[263..265], &block[508..512]) {
            (b"ustar\0", _, b"tar\0") => Self::Star,
            (b"ustar\0", _, _) => Self::Ustar,
            (b"ustar ", b" \0", _) => Self::Gnu,
            _ => Self::V7,
        }
    }
}

impl Header {
    pub(super) fn parse(block: &[u8; BLOCK]) -> io::Result<Self> {
        check_sum(block)?;
        let form = Form::of(block);
        let mut path = text(&block[..100]).to_vec();
        let prefix: &[u8] = match form {
            Form::V7 => &[],
            Form::Ustar => text(&block[345..500]),
            Form::Star => text(&block[345..476]),
            Form::Gnu => misplaced_prefix(block),
        };
        if !prefix.is_empty() {
            path = [prefix, b"/", &path].concat();
        }
        let letter = block[156];
        let device = match form {
            Form::V7 => (0, 0),
            _ => (number(&block[329..337])?, number(&block[337..345])?),
        };
        Ok(Self {
            letter,
            kind: match letter {
                b'0' | b'\0' | b'7' | b'S' => Kind::File,
                b'1' => Kind::HardLink,
                b'2' => Kind::Symlink,
                b'3' => Kind::CharDevice,
                b'4' => Kind::BlockDevice,
                b'5' => Kind::Directory,
                b'6' => Kind::Fifo,
                other => Kind::Other(other),
            },
            path,
            link: text(&block[157..257]).to_vec(),
            size: u64::try_from(number(&block[124..136])?)
                .map_err(|_| malformed("a file of negative size"))?,
            // The bits above are the file's type, which is said elsewhere.
            mode: (number(&block[100..108])? & 0o7777) as u32,
            uid: number(&block[108..116])?,
            gid: number(&block[116..124])?,
            modified: (number(&block[136..148])?, 0),
            device,
        })
    }

    pub(super) fn special(&self) -> Option<Special> {
        match self.letter {
            b'x' => Some(Special::Records),
            b'g' => Some(Special::GlobalRecords),
            b'L' => Some(Special::LongPath),
            b'K' => Some(Special::LongLink),
            _ => None,
        }
    }

    /// V7 had no letter for directories, only a slash behind their names.
    pub(super) fn settle_kind(&mut self) {
        if self.letter == b'\0' && self.path.ends_with(b"/") {
            self.kind = Kind::Directory;
        }
    }

    pub(super) fn is_old_sparse(&self) -> bool {
        self.letter == b'S'
    }

    /// Bytes that follow in the archive. Links, directories and devices have none, whatever their size says.
    pub(super) fn content(&self) -> u64 {
        match self.kind {
            Kind::File | Kind::Other(_) => self.size,
            _ => 0,
        }
    }
}

/// The sum of all bytes, with blanks in its own place. Some old programs added up signed bytes.
fn check_sum(block: &[u8; BLOCK]) -> io::Result<()> {
    let wanted = octal(&block[148..156])?;
    let bytes = || {
        let own = std::iter::repeat_n(&b' ', 8);
        block[..148].iter().chain(own).chain(&block[156..])
    };
    let unsigned: i64 = bytes().map(|byte| i64::from(*byte)).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
    if wanted == unsigned || wanted == signed {
        Ok(())
    } else {
        Err(malformed("a header whose check sum is wrong"))
    }
}

/// A field's text, up to the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number: octal, or with the first bit set a big-endian two's complement.
pub(crate) fn number(field: &[u8]) -> io::Result<i64> {
    match field {
        [first, ..] if first & 0x80 != 0 => binary(field),
        _ => octal(field),
    }
}

fn binary(field: &[u8]) -> io::Result<i64> {
    let negative = field[0] & 0x40 != 0;
    let mut value: i64 = if negative { -1 } else { 0 };
    for (at, byte) in field.iter().enumerate() {
        // The first bit says that the number is binary; the second is its sign.
        let byte = match (at, negative) {
            (0, false) => byte & 0x7f,
            _ => *byte,
        };
        value = value
            .checked_mul(256)
            .and_then(|value| value.checked_add(i64::from(byte)))
            .ok_or_else(|| malformed("a number out of range"))?;
    }
    Ok(value)
}

/// Blanks and NULs may be around it, and nothing but them stands for zero.
fn octal(field: &[u8]) -> io::Result<i64> {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\0');
    let start = field.iter().position(|byte| !blank(byte));
    let Some(start) = start else {
        return Ok(0);
    };
    let digits = text(&field[start..]);
    let digits = std::str::from_utf8(digits).map(|digits| digits.trim_end_matches(' '));
    digits
        .ok()
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| i64::from_str_radix(digits, 8).ok())
        .ok_or_else(|| malformed("a number that is none"))
}

/// Go before 1.8 wrote ustar's prefix into GNU's headers, where access and change times belong.
fn misplaced_prefix(block: &[u8; BLOCK]) -> &[u8] {
    let time = |field: &[u8]| field[0] == 0 || number(field).is_ok();
    let prefix = text(&block[345..500]);
    if (time(&block[345..357]) && time(&block[357..369])) || !prefix.is_ascii() {
        &[]
    } else {
        prefix
    }
}

pub(super) fn is_gnu(block: &[u8; BLOCK]) -> bool {
    Form::of(block) == Form::Gnu
}

/// Four entries of a sparse file's map, and whether blocks of more follow.
pub(super) fn old_sparse(block: &[u8; BLOCK]) -> (&[u8], bool) {
    (&block[386..482], block[482] != 0)
}

/// Twenty-one entries in a block of their own.
pub(super) fn old_sparse_extension(block: &[u8; BLOCK]) -> (&[u8], bool) {
    (&block[..504], block[504] != 0)
}

/// The size of a sparse file with its holes.
pub(super) fn old_sparse_size(block: &[u8; BLOCK]) -> &[u8] {
    &block[483..495]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary_and_blank_is_zero() {
        let table: &[(&[u8], Option<i64>)] = &[
            (b"0000644\0", Some(0o644)),
            (b"  644 \0\0", Some(0o644)),
            (b"\0\x00644\0\0\0", Some(0o644)),
            (b"        ", Some(0)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b" \0 \0 \0 \0", Some(0)),
            (b"77777777", Some(0o77_777_777)),
            (b"644\0junk", Some(0o644)),
            (b"0000649\0", None),
            (b"-644\0\0\0\0", None),
            (b"+644\0\0\0\0", None),
            (b"6 4\0\0\0\0\0", None),
            (b"\x80\0\0\0\0\0\x01\x00", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\x00", Some(-256)),
            (
                b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
                Some(i64::MAX),
            ),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ];
        for (field, want) in table {
            assert_eq!(number(field).ok(), *want, "{field:?}");
        }
    }
}
