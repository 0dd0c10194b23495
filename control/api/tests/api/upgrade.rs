//! A data directory that an older version wrote: what is in it stays, and everything goes on from there.

mod fixture;
mod identities;
mod objects;
