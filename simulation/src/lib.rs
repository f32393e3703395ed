//! Verve's own code on simulated machines: seeded, and by a clock that goes as fast as the code does.
//!
//! - [`executor`]: runs tasks, one after the other, in an order that the seed decides, and drops them where it is told to
//! - [`redis`]: Redis servers, by a model that runs the scripts as they are
//! - [`world`]: all that there is, and the messages between it
//! - [`host`]: the core's ports: connections to these servers, SQLite, clocks
//! - [`replica`]: the reporter, on the same servers; [`kafka`]: a broker; [`gate`]: processes that are paused
//! - [`plan`]: what happens, by a seed; [`run`]: runs it; [`verdict`]: what is promised; [`shrink`]: a smaller plan that shows the same
//! - [`mutation`]: faults that are put in, to see that they are found

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
