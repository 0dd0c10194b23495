//! The engine on a real kernel: each test in mount and network namespaces and cgroups of its own.

mod containers;
mod machine;
mod namespaces;
mod streams;
mod stuck;
mod survival;
