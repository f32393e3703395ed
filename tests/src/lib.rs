//! The rig: starts the real parts (Redis, Kafka, host or Spin, reporter), speaks to them, and ends them again.
//!
//! Tests and `verve-up` are written on top of it. Everything binds to free ports of 127.0.0.1 and lives in temporary
//! folders, so that any number of rigs run side by side; what a value started ends when the value is dropped.
//!
//! - [`process`]: a child process, its output line by line
//! - [`redis`], [`cluster`], and [`store`] for either; [`host`], [`reporter`], [`kafka`], [`broker`], [`nginx`]: the parts
//! - `examples`: the applications that count by Verve's library
//! - [`link`]: a connection between parts that can be cut, held, and held at a given moment
//! - [`http`], [`load`]: HTTP clients, one raw and one fast
//! - [`sink`]: an HTTP server that records what callbacks reach it
//! - [`metrics`]: what `/metrics` tells
//! - [`clock`], [`net`], [`paths`], [`wait`]: small helpers

pub mod authority;
pub mod broker;
pub mod clock;
pub mod cluster;
#[cfg(feature = "checks")]
pub mod examples;
pub mod host;
pub mod http;
pub mod kafka;
pub mod link;
pub mod load;
pub mod metrics;
pub mod net;
pub mod nginx;
pub mod paths;
pub mod process;
pub mod redis;
pub mod reporter;
pub mod shipped;
pub mod sink;
pub mod store;
pub mod wait;
