//! Tests the core's own code against simulated servers.

mod cluster;
mod counting;
mod given_up;
mod one_request;
mod process;
mod seeds;
mod spool;
