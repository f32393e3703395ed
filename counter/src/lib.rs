//! Counts unique ids exactly, by window, in Redis, for Spin and similar hosts.
//!
//! An id with an [`Outcome`] is counted once in its window, even if something fails afterwards. A
//! reporter, `verve-reporter`, publishes the count of each window to Kafka.
#![cfg_attr(
    all(target_family = "wasm", feature = "async"),
    doc = r#"
```no_run,standalone_crate
use std::error::Error;

use verve_counter::{Callback, Counter, Id, Method, Outcome};

/// Returns whether this player is here for the first time in this minute.
///
/// An error contains the reason why the id is not counted.
async fn is_new(player: i64, game: &str) -> Result<bool, Box<dyn Error>> {
    let counter = Counter::get().await?;
    let outcome = counter.add(Id(player)).await?;
    // By game too.
    counter.open(game.parse()?).add(Id(player)).await?;
    Ok(outcome == Outcome::New)
}

/// The same, and the endpoint is called with the count as it is then.
async fn is_new_with_callback(player: i64) -> Result<bool, Box<dyn Error>> {
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
//! The component's variables configure the counter. Only `redis_urls`, the addresses of Redis, must
//! be set. `spin.toml` must allow the component to reach Redis, and to use the SQLite database
//! `default`, where ids wait while Redis is unreachable. Without the database, ids are refused
//! meanwhile.
//!
//! # Features
//!
//! - `async`, by default: `Counter`, for components of WASI 0.3
//! - `blocking`: `blocking::Counter`, for components of WASI 0.2
//!
//! # Inside
//!
//! `verve-counter-core` decides about ids, for every host. This crate contains:
//!
//! - `counter`: the functions that components call
//! - `spin3`: the core's ports, with Spin's interfaces; `spin3::limit`: time limits without a timer
//!   for each
//!
//! For WASI 0.2, where an instance serves one request, `blocking` and `spin2` take their place.
//!
//! The modules that call the host exist only in WebAssembly.

#[cfg(all(target_family = "wasm", feature = "blocking"))]
pub mod blocking;
#[cfg(all(target_family = "wasm", feature = "async"))]
mod counter;
#[cfg(all(target_family = "wasm", feature = "blocking"))]
mod spin2;
#[cfg(all(target_family = "wasm", feature = "async"))]
mod spin3;

#[cfg(all(target_family = "wasm", feature = "async"))]
pub use counter::Counter;
pub use verve_counter_core::answer::{Limit, NotCounted, Outcome};
pub use verve_counter_core::callback::Callback;
pub use verve_counter_core::config::InvalidVariable;
pub use verve_protocol::{CounterName, Endpoint, Id, Method};
