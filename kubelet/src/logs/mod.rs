//! Container logs on the node: reading them as `kubectl logs` asks.

pub(crate) mod line;
mod read;

pub(crate) use read::{Options, Source, seconds_ago, stream};
