//! Counts unique ids exactly, by window, in Redis, for components of Spin and hosts like it.
//!
//! The way of an id, in the order of the modules:
//! - `instance`: what an instance of the component keeps (parsed variables, open connections) and the recording; `instance::drain` empties
//!   the spool
//! - [`seen`]: ids that Redis is known to have; `waiting`: those that wait at the same time are recorded together
//! - [`batches`]: what is recorded together, and what comes of each id of it
//! - `redis`: what is asked of Redis; [`cluster`]: which node of several has a key; `redis::node`: one of them, attempts and the retry;
//!   `deadlines`: their time limits; [`once`]: its connection, opened once however many wait; [`circuit`]: that it was away a moment ago
//! - `spool`: what was accepted while Redis is away, on the host's disk; `no_spool` where the host has none
//! - [`answer`]: what came of it; [`callback`]: who is to be told the count
//! - [`limits`]: what the operator may limit
//! - `clock`: the time, for all of them
//! - [`stats`]: what happened is counted and flushed after responses
//!
//! So it is for WASI 0.3. For WASI 0.2, where instances serve one request each, there is `wasip2` in place of most of it: [`answer`],
//! [`callback`], [`config`], [`limits`], [`cluster`] and [`failures`] are the same.
//!
//! What talks to the host exists only in WebAssembly; the rest is tested natively.

pub mod answer;
pub mod batches;
pub mod callback;
pub mod circuit;
#[cfg(all(target_family = "wasm", not(feature = "wasip2")))]
mod clock;
pub mod cluster;
pub mod config;
#[cfg(all(target_family = "wasm", not(feature = "wasip2")))]
mod deadlines;
pub mod failures;
#[cfg(all(target_family = "wasm", not(feature = "wasip2")))]
mod instance;
pub mod limits;
pub mod once;
#[cfg(all(target_family = "wasm", not(feature = "wasip2")))]
mod redis;
pub mod seen;
#[cfg(all(target_family = "wasm", not(feature = "wasip2"), feature = "spool"))]
mod spool;
#[cfg(all(target_family = "wasm", not(feature = "wasip2"), not(feature = "spool")))]
#[path = "no_spool.rs"]
mod spool;
pub mod stats;
#[cfg(all(target_family = "wasm", not(feature = "wasip2")))]
mod waiting;
#[cfg(all(target_family = "wasm", feature = "wasip2"))]
mod wasip2;

pub use answer::{Answer, Limit, Outcome};
pub use callback::Callback;
#[cfg(all(target_family = "wasm", not(feature = "wasip2")))]
pub use instance::Counter;
pub use verve_protocol::{Endpoint, Id, Method};
#[cfg(all(target_family = "wasm", feature = "wasip2"))]
pub use wasip2::{Counter, Note};
