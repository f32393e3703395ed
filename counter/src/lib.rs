//! Counts unique ids exactly, by window, in Redis, for components of Spin and hosts like it.
//!
//! An id that is answered with an [`Outcome`] is counted once in its window, whatever fails from then on; a reporter, `verve-reporter`, publishes each window's count to Kafka.
#![cfg_attr(
    all(target_family = "wasm", feature = "async"),
    doc = r#"
```no_run,standalone_crate
use std::error::Error;

use verve_counter::{Callback, Counter, Id, Method, Outcome};

/// Whether this player is here for the first time in this minute. An error says why that is not counted.
async fn is_new(player: i64, game: &str) -> Result<bool, Box<dyn Error>> {
    let counter = Counter::get().await?;
    let outcome = counter.add(Id(player)).await?;
    // By game too.
    counter.open(game.parse()?).add(Id(player)).await?;
    Ok(outcome == Outcome::New)
}

/// The same, and the endpoint is called with the count as it is then.
async fn is_new_and_told(player: i64) -> Result<bool, Box<dyn Error>> {
    let callback = Callback {
        endpoint: "https://example.com/players".parse()?,
        method: Some(Method::Post),
    };
    let outcome = Counter::get().await?.add_with_callback(Id(player), Some(callback)).await?;
    Ok(outcome == Outcome::New)
}
```
"#
)]
//!
//! The component's variables say where Redis is: `redis_urls` is the one that has to be set. `spin.toml` has to allow the component to reach it, and
//! to use the SQLite database `default`, where ids wait while Redis is away; without that they are refused meanwhile.
//!
//! # Features
//!
//! - `async`, by default: `Counter`, for components of WASI 0.3
//! - `blocking`: `blocking::Counter`, for components of WASI 0.2
//!
//! # Inside
//!
//! What is decided without a host is in `verve-counter-core`. The way of an id, in the order of the modules here:
//! - `instance`: what an instance of the component keeps (parsed variables, open connections) and the recording; `instance::counter` is what components call, `instance::drain` empties
//!   the spool
//! - `waiting`: ids that wait at the same time are recorded together
//! - `redis`: what is asked of Redis; `redis::node`: one of several nodes, attempts and the retry; `deadlines`: their time limits
//! - `spool`: what was accepted while Redis is away, on the host's disk
//! - `clock`: the time, for all of them
//!
//! For WASI 0.2, where instances serve one request each, there is `blocking` in place of all of it.
//!
//! What talks to the host exists only in WebAssembly.

#[cfg(all(target_family = "wasm", feature = "blocking"))]
pub mod blocking;
#[cfg(all(target_family = "wasm", feature = "async"))]
mod clock;
#[cfg(all(target_family = "wasm", feature = "async"))]
mod deadlines;
#[cfg(all(target_family = "wasm", feature = "async"))]
mod instance;
#[cfg(all(target_family = "wasm", feature = "async"))]
mod redis;
#[cfg(all(target_family = "wasm", feature = "async"))]
mod spool;
#[cfg(all(target_family = "wasm", feature = "async"))]
mod waiting;

#[cfg(all(target_family = "wasm", feature = "async"))]
pub use instance::Counter;
pub use verve_counter_core::answer::{Limit, NotCounted, Outcome};
pub use verve_counter_core::callback::Callback;
pub use verve_counter_core::config::InvalidVariable;
pub use verve_protocol::{CounterName, Endpoint, Id, Method};
