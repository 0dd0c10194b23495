//! Turns one layer's archive into a directory that overlayfs can use as a lower layer.
//!
//! The archive is hostile until proven otherwise: every path is resolved inside the layer's root by descriptor
//! ([`tree`]), what it may use of disk, names and memory is bounded ([`meter`]), and the caller gets the digest of the
//! uncompressed archive to compare before it uses anything.
//!
//! Source: OCI image specification, layer.md; Linux, filesystems/overlayfs.rst.

mod entry;
mod meter;
mod tree;

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::archive;
use crate::digest::Digest;
use meter::Meter;

/// What one layer may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Bytes of its archive once it is uncompressed, and of its files: a file with holes has more bytes than its archive.
    /// Default: 64 GiB, more than any image in use.
    pub bytes: u64,
    /// Names in it. Default: 2,000,000.
    pub entries: u64,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        Self {
            bytes: 64 << 30,
            entries: 2_000_000,
        }
    }
}

/// What came out of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unpacked {
    /// The digest of the uncompressed archive.
    pub(crate) diff_id: Digest,
    /// Its length.
    pub(crate) bytes: u64,
    /// Directories that it has no entry for.
    pub(crate) implicit: Vec<PathBuf>,
}

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive ends early, or is no tar archive, or its compression is damaged.
    #[error("read the archive")]
    Archive(#[source] io::Error),
    /// The archive is longer than allowed.
    #[error("the layer has over {limit} bytes")]
    TooManyBytes {
        /// The most that is accepted.
        limit: u64,
    },
    /// The archive has more entries than allowed.
    #[error("the layer has over {limit} entries")]
    TooManyEntries {
        /// The most that is accepted.
        limit: u64,
    },
    /// A path leads out of the root, or is none.
    #[error("the layer has the path {path:?}, which leads out of it")]
    Escape {
        /// The path.
        path: String,
    },
    /// An entry of a type that no image has.
    #[error("{path:?} in the layer has unknown type {kind:#x}")]
    UnknownType {
        /// The path.
        path: PathBuf,
        /// The type, as in the archive.
        kind: u8,
    },
    /// An entry that could not be made.
    #[error("unpack {path:?}")]
    Entry {
        /// Its path in the layer.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl UnpackError {
    /// Whether the archive itself is at fault, so that another copy of it may help.
    pub fn is_corrupt(&self) -> bool {
        !matches!(self, Self::Entry { .. })
    }
}

/// Unpacks the archive, compressed or not, into the empty directory `root`.
pub(crate) fn unpack(
    archive: impl Read,
    root: OwnedFd,
    limits: UnpackLimits,
) -> Result<Unpacked, UnpackError> {
    let meter = Meter::new(
        decompress(archive).map_err(UnpackError::Archive)?,
        limits.bytes,
    );
    let mut archive = archive::Reader::new(meter.reader());
    let mut writer = entry::Writer::new(root, limits.bytes);
    let mut count = 0;
    let run = || -> Result<BTreeSet<PathBuf>, UnpackError> {
        loop {
            meter.allow_header();
            let Some(entry) = archive.next().map_err(UnpackError::Archive)? else {
                break;
            };
            count += 1;
            if count > limits.entries {
                return Err(UnpackError::TooManyEntries {
                    limit: limits.entries,
                });
            }
            meter.allow_all();
            writer.write(&entry, &mut archive)?;
            // What the writer left of it, so that the next header is all that `next` reads.
            archive.skip().map_err(UnpackError::Archive)?;
        }
        // Some archives go on after their end mark; the digest counts every byte.
        meter.allow_all();
        io::copy(&mut meter.reader(), &mut io::sink()).map_err(UnpackError::Archive)?;
        writer.finish()
    };
    let result = run();
    if meter.is_exhausted() {
        return Err(UnpackError::TooManyBytes {
            limit: limits.bytes,
        });
    }
    let implicit = result?.into_iter().collect();
    let (diff_id, bytes) = meter.finish();
    Ok(Unpacked {
        diff_id,
        bytes,
        implicit,
    })
}

/// Undoes gzip or zstd compression, told by the first bytes: media types are often wrong.
pub(crate) fn decompress<'a>(archive: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut archive = BufReader::with_capacity(128 * 1024, archive);
    let mut magic = [0; 4];
    let mut length = 0;
    while length < magic.len() {
        match archive.read(&mut magic[length..]) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    let archive = io::Cursor::new(magic).take(length as u64).chain(archive);
    Ok(match magic {
        [0x1f, 0x8b, 8, _] => Box::new(BufReader::with_capacity(
            128 * 1024,
            Gzip(Some(flate2::bufread::GzDecoder::new(archive))),
        )),
        // A frame, or one of those that decoders skip: pzstd begins with one. Source: RFC 8878, 3.1.
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            Box::new(zstd::stream::read::Decoder::with_buffer(archive)?)
        }
        _ => Box::new(archive),
    })
}

/// The members of a gzip file, one after the other. What comes after them and is none is left out, as by gzip(1) and pigz(1): some
/// builders pad, and the digest of the archive tells whether it is whole.
struct Gzip<R>(Option<flate2::bufread::GzDecoder<R>>);

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(member) = &mut self.0 else {
                return Ok(0);
            };
            let read = member.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let mut rest = self.0.take().expect("there is a member").into_inner();
            if let [0x1f, ..] = rest.fill_buf()? {
                self.0 = Some(flate2::bufread::GzDecoder::new(rest));
            }
        }
    }
}
