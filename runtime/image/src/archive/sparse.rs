//! Maps of sparse files: which part of the content belongs where.

use std::io;

use super::header::{BLOCK, number};
use super::malformed;

/// A part that is in the archive. What is between two of them is zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fragment {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// The most fragments of one file, which are kept in memory. A file has one for each stretch between two holes.
const MOST: usize = 1 << 17;

fn too_many() -> io::Error {
    malformed("a sparse file of over 131072 parts")
}

/// In order, apart from each other, within the file, and as long together as the content in the archive.
pub(super) fn check(fragments: &[Fragment], size: u64, content: u64) -> io::Result<()> {
    if i64::try_from(size).is_err() {
        return Err(malformed("a sparse file of a size out of range"));
    }
    let (mut end, mut sum) = (0, 0_u64);
    for fragment in fragments {
        if fragment.offset < end {
            return Err(malformed("a sparse file whose parts overlap"));
        }
        end = fragment
            .offset
            .checked_add(fragment.length)
            .filter(|end| *end <= size)
            .ok_or_else(|| malformed("a sparse file that ends before its last part"))?;
        // No overflow: the parts are apart and within the file.
        sum += fragment.length;
    }
    if sum == content {
        Ok(())
    } else {
        Err(malformed(
            "a sparse file whose parts are not all of its content",
        ))
    }
}

pub(super) fn decimal(text: &[u8]) -> io::Result<u64> {
    std::str::from_utf8(text)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| malformed("a sparse file whose map has something else than numbers"))
}

pub(super) fn pairs(numbers: &[u64]) -> Vec<Fragment> {
    let pairs = numbers.chunks_exact(2);
    pairs
        .map(|pair| Fragment {
            offset: pair[0],
            length: pair[1],
        })
        .collect()
}

/// GNU's old form: offset and length in twelve bytes each. Returns whether there is another block of them.
pub(super) fn old_entries(
    (entries, more): (&[u8], bool),
    fragments: &mut Vec<Fragment>,
) -> io::Result<bool> {
    for entry in entries.chunks_exact(24) {
        // As GNU and BSD tar see the end of the list.
        if entry[0] == 0 {
            break;
        }
        let value = |field: &[u8]| {
            u64::try_from(number(field)?).map_err(|_| malformed("a sparse file of negative size"))
        };
        if fragments.len() == MOST {
            return Err(too_many());
        }
        fragments.push(Fragment {
            offset: value(&entry[..12])?,
            length: value(&entry[12..])?,
        });
    }
    Ok(more)
}

/// The map of form 1.0, block by block.
#[derive(Default)]
pub(super) struct LeadingMap {
    line: Vec<u8>,
    count: Option<u64>,
    numbers: Vec<u64>,
}

impl LeadingMap {
    /// Returns the map once it is whole; what is behind it in its last block is padding.
    pub(super) fn feed(&mut self, block: &[u8; BLOCK]) -> io::Result<Option<Vec<Fragment>>> {
        for byte in block {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            let number = decimal(&self.line)?;
            self.line.clear();
            match self.count {
                None if number > MOST as u64 => return Err(too_many()),
                None => self.count = Some(number),
                Some(_) => self.numbers.push(number),
            }
            if self.count == Some(self.numbers.len() as u64 / 2)
                && self.numbers.len().is_multiple_of(2)
            {
                return Ok(Some(pairs(&self.numbers)));
            }
        }
        if self.line.len() > 20 {
            return Err(malformed(
                "a sparse file whose map has something else than numbers",
            ));
        }
        Ok(None)
    }
}
