//! How a value lies in the file: its two revisions, then its bytes.

use bytes::Bytes;

use crate::{KeyValue, Revision};

/// `create_revision` and `mod_revision`, little-endian.
const HEADER: usize = 16;

/// The bytes under one key of the file.
pub(crate) fn encode(create: Revision, modified: Revision, value: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEADER + value.len());
    record.extend_from_slice(&create.to_le_bytes());
    record.extend_from_slice(&modified.to_le_bytes());
    record.extend_from_slice(value);
    record
}

/// The inverse of [`encode`]; `None` for a record that is too short to be one of ours.
pub(crate) fn decode(key: &str, record: &[u8]) -> Option<KeyValue> {
    let (create, rest) = record.split_first_chunk::<8>()?;
    let (modified, value) = rest.split_first_chunk::<8>()?;
    Some(KeyValue {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(value),
        create_revision: Revision::from_le_bytes(*create),
        mod_revision: Revision::from_le_bytes(*modified),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let kv = decode("/k", &encode(3, 7, b"value")).unwrap();
        assert_eq!(
            (kv.create_revision, kv.mod_revision, &kv.value[..]),
            (3, 7, &b"value"[..])
        );
    }

    #[test]
    fn a_record_without_its_header_is_refused() {
        assert_eq!(decode("/k", &[0; HEADER - 1]), None);
    }
}
