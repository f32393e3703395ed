//! What is decided about an id, whatever host it comes by: the inside of `verve-counter`, which says how it is used.
//!
//! - [`ports`]: what a host has to offer
//! - [`counter`]: what a component counts by; [`instance`]: what an instance keeps between requests, and the way of an id
//! - `queue`: ids that wait for a server are recorded together
//! - `redis`: what is asked of Redis; one of several nodes, attempts and the retry
//! - `spool`: what was accepted while Redis is away, on the host's disk
//!
//! What they decide by, without waiting for anything:
//! - [`config`]: the variables that describe it all
//! - `counted`: what an instance keeps of each counter; `registered`: those that have a name
//! - `seen`: ids that Redis is known to have; `alike`: those that wait at the same time and are recorded together
//! - `sets`: what goes into which set, and what comes of each id of it; `limits`: what the operator may limit; `expiry`: how long sets are kept
//! - [`cluster`]: which node of several has a key; [`once`]: its connection, opened once however many wait; `circuit`: that it was away a moment ago
//! - [`redis_error`]: what Redis fails by
//! - [`spooled`]: what was accepted while Redis is away
//! - [`answer`]: what came of it; [`callback`]: who is to be told the count
//! - `stats`: what happened is counted and flushed after responses

mod alike;
pub mod answer;
pub mod callback;
mod circuit;
pub mod cluster;
pub mod config;
mod counted;
pub mod counter;
mod expiry;
pub mod instance;
mod limits;
pub mod once;
pub mod ports;
mod queue;
mod redis;
pub mod redis_error;
mod registered;
pub mod reply;
mod seen;
mod sets;
mod spool;
pub mod spooled;
mod stats;
