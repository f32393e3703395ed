//! The core of `verve-counter`: decides about each id, independently of the host.
//!
//! The docs of `verve-counter` explain how to use it.
//!
//! - [`ports`]: what a host must provide
//! - [`counter`]: the counter that a component uses
//! - [`instance`]: what an instance keeps between requests, and how an id is recorded
//! - `queue`: records the ids that wait for a server together
//! - `redis`: the requests to Redis: the choice of the node, attempts and the retry
//! - `spool`: what was accepted while Redis is unreachable, on the host's disk
//! - [`single_flight`]: opens a connection once, for all tasks that wait for it
//!
//! These modules decide without waiting for anything:
//!
//! - [`config`]: the variables that configure all of this
//! - `counter_state`: what an instance keeps of each counter
//! - `registered`: the registration of named counters
//! - `dedup_cache`: ids that Redis is known to have
//! - `alike`: ids that wait at the same time and are recorded together
//! - `sets`: which id goes into which set, and the answer of each id
//! - `limits`: the limits that the operator may set
//! - `expiry`: how long sets are kept
//! - [`cluster`]: which node of a cluster has a key
//! - `circuit`: remembers that a server was unreachable a moment ago
//! - [`redis_error`]: the failures of Redis
//! - [`spooled`]: the content of the spool, and its failures
//! - [`answer`]: the outcome of an id
//! - [`callback`]: which endpoint receives the count
//! - `stats`: statistics, counted in memory and flushed after responses

mod alike;
pub mod answer;
pub mod callback;
mod circuit;
pub mod cluster;
pub mod config;
pub mod counter;
mod counter_state;
mod dedup_cache;
mod expiry;
pub mod instance;
mod limits;
pub mod ports;
mod queue;
mod redis;
pub mod redis_error;
mod registered;
pub mod reply;
mod sets;
pub mod single_flight;
mod spool;
pub mod spooled;
mod stats;
