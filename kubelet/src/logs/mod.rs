//! Container logs on the node.

pub(crate) mod line;
