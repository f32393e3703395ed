//! Verve end to end, on real parts: a real redis-server, Kafka, the built component in `verve-host` and, where there is
//! one, in Spin, and the built reporter.
//!
//! The tests know the contract (`docs/`, the README, `verve-protocol`) and nothing of the programs' insides. Nothing is
//! skipped: where a program is missing, its tests fail and say so.

mod callbacks;
mod contract;
mod counting;
mod demo;
mod endpoints;
mod faults;
mod guard;
mod hosting;
mod ledger;
mod logging;
mod recorded;
mod replicas;
mod reporting;
mod retries;
mod site;
mod startup;
mod windows;
mod world;
