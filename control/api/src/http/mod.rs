//! HTTP: from a request to an answer, whether it came over TLS or from inside the process.
//!
//! Reading order: `path`, `query`, `negotiate`, `body`, `respond` (the words), `dispatch` (the way of a request), `objects`
//! (objects and collections), `frames` (those of a watch), `subresources`, `reviews`, `tokens`, `node` (what the kubelet answers),
//! `websocket` (logs over one), `proxy` (to pods, services and nodes; `unverified` is their TLS), `other` (discovery),
//! `health`, `metrics`, `seat` (how many at once), `serve` (sockets), `local` (the in-process client's way in).

pub mod body;
pub mod local;
pub mod negotiate;
pub mod path;
pub mod query;
mod quirks;
pub mod respond;
pub mod serve;

mod dispatch;
mod frames;
mod health;
mod metrics;
mod node;
mod objects;
mod other;
mod proxy;
mod reviews;
pub(crate) mod seat;
mod subresources;
mod tokens;
mod unverified;
mod websocket;

pub use body::{RequestBody, ResponseBody};
pub(crate) use metrics::Metrics;
pub(crate) use node::Nodes;
