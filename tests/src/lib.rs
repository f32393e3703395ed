//! The test rig: starts the real parts, communicates with them, and stops them.
//!
//! The parts are Redis, Kafka, the host (`verve-host` or Spin) and the reporter. Tests and
//! `verve-up` use the rig. Everything binds to free ports of 127.0.0.1 and uses temporary folders,
//! so any number of rigs run side by side. What a value started ends when the value is dropped.
//!
//! - [`process`]: a child process, its output line by line
//! - [`redis`], [`cluster`], and [`store`] for either; [`host`], [`reporter`], [`kafka`],
//!   [`broker`], [`nginx`]: the parts
//! - `examples`: the applications that count with Verve's library
//! - [`link`]: a connection between parts that can be cut, held, or held at a given moment
//! - [`http`], [`load`]: HTTP clients, one raw and one fast
//! - [`sink`]: an HTTP server that records the callbacks it receives
//! - [`metrics`]: a strict parser for `/metrics`
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
