//! Counts unique ids exactly, by window, in Redis, for components of Spin and hosts like it.
//!
//! What is answered [`Answer::Recorded`] is counted once in its window, whatever fails from then on; a reporter, `verve-reporter`, publishes each window's count to Kafka.
#![cfg_attr(
    all(target_family = "wasm", not(feature = "wasip2")),
    doc = r#"
```no_run,standalone_crate
use verve_counter::{Answer, Counter, Id, Outcome};

/// Whether this player is here for the first time in this minute.
async fn is_new(player: i64, game: &str) -> Result<bool, String> {
    let counter = Counter::get().await?;
    let answer = counter.add(Id(player)).await;
    // By game too.
    let name = game.parse().map_err(|error| format!("{error}"))?;
    counter.open(name).add(Id(player)).await;
    match answer {
        Answer::Recorded(outcome) => Ok(outcome == Outcome::New),
        _ => Err("not counted".to_owned()),
    }
}
```
"#
)]
//!
//! The component's variables say where Redis is: `redis_urls` is the one that has to be set. `spin.toml` has to allow the component to reach it, and with the feature
//! `spool`, on by default, to use the SQLite database `default`, where ids wait while Redis is away. On WASI 0.2 (the feature `wasip2`, without the default ones) `Counter`
//! blocks, and has no spool.
//!
//! # Inside
//!
//! The way of an id, in the order of the modules:
//! - `instance`: what an instance of the component keeps (parsed variables, open connections) and the recording; `instance::counter` is what components call, `instance::drain` empties
//!   the spool
//! - [`counted`]: what it keeps of each counter
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
pub mod counted;
#[cfg(all(target_family = "wasm", not(feature = "wasip2")))]
mod deadlines;
pub mod expiry;
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
pub use verve_protocol::{CounterName, Endpoint, Id, Method};
#[cfg(all(target_family = "wasm", feature = "wasip2"))]
pub use wasip2::{Counter, Note};
