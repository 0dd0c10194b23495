//! The API server in a process of its own making: a real store in a temporary directory, requests through the in-process
//! service or over TLS.

mod apply;
mod auth;
mod crud;
mod custom;
mod deletion;
mod edge;
mod failures;
mod lists;
mod node;
mod pipeline;
mod protobuf;
mod rbac;
mod services;
mod support;
mod upgrade;
mod watches;
mod wire;
