//! Counts and hashes what is read of an archive, and stops it where it asks for too much.

use std::cell::{Cell, RefCell};
use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;

/// The most that one entry's header may have: names, attributes and the map of a sparse file, which are read into memory.
const HEADER_BYTES: u64 = 2 << 20;

/// Watches over one stream. A bomb runs into `limit`, a header into [`HEADER_BYTES`].
pub(super) struct Meter<R> {
    inner: RefCell<R>,
    hash: RefCell<Sha256>,
    count: Cell<u64>,
    /// Bytes until the stream fails.
    allowance: Cell<u64>,
    limit: u64,
}

/// The stream itself.
pub(super) struct Metered<'a, R>(&'a Meter<R>);

impl<R: Read> Meter<R> {
    pub(super) fn new(inner: R, limit: u64) -> Self {
        Self {
            inner: RefCell::new(inner),
            hash: RefCell::new(Sha256::new()),
            count: Cell::new(0),
            allowance: Cell::new(limit),
            limit,
        }
    }

    pub(super) fn reader(&self) -> Metered<'_, R> {
        Metered(self)
    }

    /// From here on, only a header's worth of bytes.
    pub(super) fn allow_header(&self) {
        self.allowance
            .set(HEADER_BYTES.min(self.limit - self.count.get()));
    }

    /// From here on, all that is left to the whole stream.
    pub(super) fn allow_all(&self) {
        self.allowance.set(self.limit - self.count.get());
    }

    /// Whether the stream tried to go beyond the limit of the whole.
    pub(super) fn is_exhausted(&self) -> bool {
        self.count.get() == self.limit && self.allowance.get() == 0
    }

    /// Digest and length of all that was read.
    pub(super) fn finish(self) -> (Digest, u64) {
        (Digest::from_hash(self.hash.into_inner()), self.count.get())
    }
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let meter = self.0;
        let most = buffer
            .len()
            .min(usize::try_from(meter.allowance.get()).unwrap_or(usize::MAX));
        if most == 0 && !buffer.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::QuotaExceeded,
                "the archive asks for more than it may have",
            ));
        }
        let read = meter.inner.borrow_mut().read(&mut buffer[..most])?;
        meter.hash.borrow_mut().update(&buffer[..read]);
        meter.count.set(meter.count.get() + read as u64);
        meter.allowance.set(meter.allowance.get() - read as u64);
        Ok(read)
    }
}
