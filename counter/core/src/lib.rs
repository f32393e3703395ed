//! What is decided about an id, as far as no host is needed for it: the inside of `verve-counter`, which says how it is used.
//!
//! The way of an id, in the order of the modules:
//! - [`config`]: the variables that describe it all
//! - [`counted`]: what an instance keeps of each counter; [`registered`]: those that have a name
//! - [`seen`]: ids that Redis is known to have; [`alike`]: those that wait at the same time and are recorded together
//! - [`sets`]: what goes into which set, and what comes of each id of it; [`limits`]: what the operator may limit; [`expiry`]: how long sets are kept
//! - [`cluster`]: which node of several has a key; [`once`]: its connection, opened once however many wait; [`circuit`]: that it was away a moment ago
//! - [`redis_error`]: what Redis fails by
//! - [`spooled`]: what was accepted while Redis is away
//! - [`answer`]: what came of it; [`callback`]: who is to be told the count
//! - [`stats`]: what happened is counted and flushed after responses

pub mod alike;
pub mod answer;
pub mod callback;
pub mod circuit;
pub mod cluster;
pub mod config;
pub mod counted;
pub mod expiry;
pub mod limits;
pub mod once;
pub mod redis_error;
pub mod registered;
pub mod seen;
pub mod sets;
pub mod spooled;
pub mod stats;
