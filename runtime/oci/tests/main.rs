//! Everything of `knarr-oci` that is tested from the outside, by running it. One program, because seventeen take seventeen
//! times as long to link.
//!
//! Each module is a suite: `cargo test -p knarr-oci races::` runs one. `OCI_RUNTIME` names another runtime (crun, runc) for the
//! same cases: one that fails there too is suspect.

mod attacks;
mod callers;
mod checkpoint;
mod commandline;
mod conformance;
mod documentation;
#[cfg(target_arch = "x86_64")]
mod failures;
mod flags;
mod inherited;
mod isolation;
mod lifecycle;
mod limits;
mod parity;
mod process;
mod races;
mod rootless;
mod spec;
mod support;
mod systemd;
