//! Runs Verve's own code on simulated machines, from seeds, on a simulated clock.
//!
//! The clock runs as fast as the code does.
//!
//! - [`executor`]: runs tasks one after the other, in an order that the seed determines, and drops
//!   tasks on request
//! - [`redis`]: a model of Redis servers that runs the scripts unchanged
//! - [`world`]: the servers, the clock, and the messages between the parts
//! - [`host`]: the core's ports: connections to these servers, SQLite, clocks
//! - [`replica`]: the reporter, on the same servers; [`kafka`]: a broker; [`gate`]: paused
//!   processes
//! - [`plan`]: what happens, by a seed; [`run`]: runs a plan; [`verdict`]: checks the promises;
//!   [`shrink`]: finds a smaller plan that also has a problem
//! - [`mutation`]: faults that are inserted to check that the simulation finds them

pub mod endpoints;
pub mod executor;
pub mod gate;
pub mod host;
pub mod kafka;
pub mod mutation;
pub mod plan;
pub mod redis;
pub mod replica;
pub mod run;
pub mod shrink;
pub mod verdict;
pub mod world;
