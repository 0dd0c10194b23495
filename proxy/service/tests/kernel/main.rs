//! Services on the real kernel: each case is a machine of its own, with pods made by knarr-network.

mod connections;
mod machine;
#[path = "../../../../tests/support/netns.rs"]
mod netns;
mod outside;
mod table;
