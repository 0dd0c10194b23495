//! Reads tar archives as Go's `archive/tar` does, which is what containerd and Docker read layers with.
//!
//! V7, ustar, star, PAX and GNU archives; sparse files of GNU's old form and of the three in PAX records. An archive that is read
//! differently here than there is another image, so what `archive/tar` refuses is refused. (The `tar` crate writes the map of a sparse
//! file into the file, splits records at newlines in their values, and knows neither V7's directories nor blank numbers; no other
//! crate reads sparse files in PAX records either.)
//!
//! Sources: pax(1); GNU tar manual, "Basic Tar Format" and "Storing Sparse Files"; Go, archive/tar, reader.go and format.go.

mod header;
mod pax;
mod sparse;

use std::io::{self, Read};

pub(crate) use header::{BLOCK, Kind, number};
use header::{Header, Special};
use pax::Records;
use sparse::Fragment;

/// What an archive says of one file beside its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    /// The target of a link.
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    /// Bytes of the file, holes included.
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: i64,
    pub(crate) gid: i64,
    /// Seconds, and nanoseconds after them.
    pub(crate) modified: (i64, u32),
    /// Major and minor number of a device.
    pub(crate) device: (i64, i64),
    /// Extended attributes, in the order of the archive.
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
}

/// A piece of a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// So many bytes, in the buffer.
    Data(usize),
    /// So many zeros, which the archive does not have.
    Hole(u64),
    /// No more.
    End,
}

/// The most that names and records of one file may have; they are read into memory. Go takes half of it.
const SPECIAL_BYTES: u64 = 2 << 20;

/// An archive that is read from its beginning to its end.
pub(crate) struct Reader<R> {
    source: R,
    /// Bytes of the present file that are still in the archive.
    left: u64,
    /// Zeros behind them.
    padding: u64,
    /// How much of the present file came, holes included, and how much there is.
    position: u64,
    size: u64,
    fragments: std::vec::IntoIter<Fragment>,
    /// What is left of the fragment at hand.
    fragment: Option<Fragment>,
}

pub(crate) fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(source: R) -> Self {
        Self {
            source,
            left: 0,
            padding: 0,
            position: 0,
            size: 0,
            fragments: Vec::new().into_iter(),
            fragment: None,
        }
    }

    /// Reads on to the end of the present file.
    pub(crate) fn skip(&mut self) -> io::Result<()> {
        let skipped = io::copy(&mut (&mut self.source).take(self.left), &mut io::sink())?;
        if skipped < self.left {
            return Err(cut_short());
        }
        self.left = 0;
        // An archive may end before the last block is full.
        io::copy(&mut (&mut self.source).take(self.padding), &mut io::sink())?;
        self.padding = 0;
        Ok(())
    }

    /// The next file; `None` at the archive's end mark, or where an archive without one ends.
    pub(crate) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut records = Records::default();
        let (mut long_path, mut long_link) = (Vec::new(), Vec::new());
        loop {
            self.skip()?;
            let Some(block) = self.header_block()? else {
                return Ok(None);
            };
            let mut header = Header::parse(&block)?;
            self.expect(header.content());
            match header.special() {
                Some(Special::Records) => {
                    records = Records::parse(&self.short_content()?)?;
                    continue;
                }
                Some(Special::GlobalRecords) => {
                    // containerd and Docker read them and pass them over.
                    Records::parse(&self.short_content()?)?;
                    continue;
                }
                Some(Special::LongPath) => {
                    long_path = header::text(&self.short_content()?).to_vec();
                    continue;
                }
                Some(Special::LongLink) => {
                    long_link = header::text(&self.short_content()?).to_vec();
                    continue;
                }
                None => {}
            }
            records.apply(&mut header)?;
            if !long_path.is_empty() {
                header.path = long_path;
            }
            if !long_link.is_empty() {
                header.link = long_link;
            }
            header.settle_kind();
            // The records may have changed the size, and a name the kind.
            self.expect(header.content());
            let fragments = self.sparse_map(&mut header, &records, block)?;
            if let Some(fragments) = fragments {
                sparse::check(&fragments, header.size, self.left)?;
                self.fragments = fragments.into_iter();
            } else {
                let whole = Fragment {
                    offset: 0,
                    length: self.left,
                };
                self.fragments = vec![whole].into_iter();
            }
            self.fragment = self.fragments.next();
            self.position = 0;
            self.size = match header.kind {
                Kind::File => header.size,
                _ => 0,
            };
            return Ok(Some(Entry {
                size: self.size,
                path: header.path,
                link: header.link,
                kind: header.kind,
                mode: header.mode,
                uid: header.uid,
                gid: header.gid,
                modified: header.modified,
                device: header.device,
                xattrs: records.into_xattrs(),
            }));
        }
    }

    /// The next piece of the present file.
    pub(crate) fn piece(&mut self, buffer: &mut [u8]) -> io::Result<Piece> {
        loop {
            let Some(fragment) = &mut self.fragment else {
                let hole = self.size.saturating_sub(self.position);
                self.position += hole;
                return Ok(if hole > 0 {
                    Piece::Hole(hole)
                } else {
                    Piece::End
                });
            };
            if self.position < fragment.offset {
                let hole = fragment.offset - self.position;
                self.position = fragment.offset;
                return Ok(Piece::Hole(hole));
            }
            if fragment.length == 0 {
                self.fragment = self.fragments.next();
                continue;
            }
            let most = usize::try_from(fragment.length).unwrap_or(usize::MAX);
            let most = most.min(buffer.len());
            let read = match self.source.read(&mut buffer[..most]) {
                Ok(0) => return Err(cut_short()),
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            let taken = read as u64;
            fragment.offset += taken;
            fragment.length -= taken;
            self.position += taken;
            self.left -= taken;
            return Ok(Piece::Data(read));
        }
    }

    /// Blocks from here on are a file's content.
    fn expect(&mut self, bytes: u64) {
        self.left = bytes;
        self.padding = bytes.wrapping_neg() % BLOCK as u64;
    }

    /// The block of the next header; `None` at the end.
    fn header_block(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        if !self.fill(&mut block)? {
            return Ok(None);
        }
        if block != [0; BLOCK] {
            return Ok(Some(block));
        }
        // Two blocks of zeros are the end mark. One alone may be where a damaged archive goes on.
        if self.fill(&mut block)? && block != [0; BLOCK] {
            return Err(malformed("a block of zeros in the middle of the archive"));
        }
        Ok(None)
    }

    /// Reads a whole block, or tells that there is none.
    fn fill(&mut self, block: &mut [u8; BLOCK]) -> io::Result<bool> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.source.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(cut_short()),
                Ok(n) => filled += n,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
        Ok(true)
    }

    /// A whole block that must be there.
    fn block(&mut self) -> io::Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        if self.fill(&mut block)? {
            Ok(block)
        } else {
            Err(cut_short())
        }
    }

    /// The content of an entry that describes another: names and records.
    fn short_content(&mut self) -> io::Result<Vec<u8>> {
        if self.left > SPECIAL_BYTES {
            return Err(malformed("a name or record of over 2 MiB"));
        }
        let mut content = Vec::new();
        let read = (&mut self.source)
            .take(self.left)
            .read_to_end(&mut content)? as u64;
        if read < self.left {
            return Err(cut_short());
        }
        self.left = 0;
        Ok(content)
    }

    /// Where the fragments of a sparse file belong, in whichever of the four forms; `None` for other files.
    fn sparse_map(
        &mut self,
        header: &mut Header,
        records: &Records,
        block: [u8; BLOCK],
    ) -> io::Result<Option<Vec<Fragment>>> {
        if header.is_old_sparse() {
            if !header::is_gnu(&block) {
                return Err(malformed("a sparse file in star's form, which is unknown"));
            }
            header.size = number(header::old_sparse_size(&block))?
                .try_into()
                .map_err(|_| malformed("a sparse file of negative size"))?;
            let mut fragments = Vec::new();
            let mut more = sparse::old_entries(header::old_sparse(&block), &mut fragments)?;
            while more {
                let block = self.block()?;
                more = sparse::old_entries(header::old_sparse_extension(&block), &mut fragments)?;
            }
            return Ok(Some(fragments));
        }
        let Some(form) = records.sparse()? else {
            return Ok(None);
        };
        if header.kind != Kind::File {
            return Err(malformed("a sparse file that is no regular file"));
        }
        if let Some(name) = form.name {
            header.path = name;
        }
        if let Some(size) = form.size {
            header.size = size;
        }
        match form.fragments {
            Some(fragments) => Ok(Some(fragments)),
            None => self.leading_map().map(Some),
        }
    }

    /// The map before the content, of form 1.0: decimal numbers, one a line, in whole blocks.
    fn leading_map(&mut self) -> io::Result<Vec<Fragment>> {
        let mut map = sparse::LeadingMap::default();
        loop {
            if self.left < BLOCK as u64 {
                return Err(malformed("a sparse file whose map is cut short"));
            }
            let block = self.block()?;
            self.left -= BLOCK as u64;
            if let Some(fragments) = map.feed(&block)? {
                return Ok(fragments);
            }
        }
    }
}

fn cut_short() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the archive ends in the middle of a file",
    )
}

#[cfg(test)]
mod tests;
