//! Verve's own code on simulated machines: seeded, and by a clock that goes as fast as the code does.
//!
//! - [`executor`]: runs tasks, one after the other, in an order that the seed decides, and drops them where it is told to
//! - [`redis`]: Redis servers, by a model that runs the scripts as they are
//! - [`host`]: the core's ports: connections to these servers, SQLite, clocks

pub mod executor;
pub mod host;
pub mod redis;
