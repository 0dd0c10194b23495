//! Kubernetes' protobuf encoding of objects, in both directions.
//!
//! A body is the magic `k8s\0` and a `runtime.Unknown`, which names the kind and holds the object's own message. The schemas
//! know the fields' names and types; `protobuf.txt` adds their numbers. Kinds without numbers, such as custom resources, have
//! no such encoding.
//!
//! Reading order: `numbers` (the table), `wire` (bytes), `decode` (what clients send), `encode` (objects and lists that we
//! answer with) and `meta` (what is no object of a resource: Status, metadata alone, watch events).

mod decode;
mod encode;
mod meta;
mod numbers;
mod wire;

pub use decode::decode;
pub use encode::{EncodeError, encode, encode_list, encodes};
pub use meta::{encode_by_kind, encode_partial, encode_partial_list, watch_frame};

/// What every body starts with.
const MAGIC: &[u8] = b"k8s\0";
/// Deeper messages are refused, so that nobody exhausts the stack.
const MAX_DEPTH: usize = 64;

#[cfg(test)]
mod tests;
