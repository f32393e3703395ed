//! Verve's Spin component: `GET /api/verve/accept?id=…` in, `SADD` out.
//!
//! The way of a request, in the order of the modules:
//! - [`request`]: the query becomes an `Accept`, or a bad request
//! - `instance`: what the instance keeps (parsed variables, open connections) and the recording
//! - `redis`: one server; attempts, timeouts and the retry; [`once`]: its connection, opened once however many wait
//! - [`answer`]: what came of it, as status, headers and body; `http` sends it
//! - [`stats`]: what happened is counted and flushed after responses
//!
//! What talks to the host exists only in the WebAssembly build; the rest is tested natively.

pub mod answer;
pub mod config;
#[cfg(target_family = "wasm")]
mod http;
#[cfg(target_family = "wasm")]
mod instance;
pub mod once;
#[cfg(target_family = "wasm")]
mod redis;
pub mod request;
pub mod stats;
