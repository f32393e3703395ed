//! Verve end to end, on real parts: a real redis-server, Kafka, the built component in `verve-host` and, where there is
//! one, in Spin, and the built reporter.
//!
//! The tests know the contract (`docs/`, the README, `verve-protocol`) and nothing of the programs' insides. Nothing is
//! skipped: where a program is missing, its tests fail and say so.

mod balanced;
mod bounds;
mod callbacks;
mod chaos;
mod clocks;
mod cluster;
mod contract;
mod counting;
mod counts;
mod dead;
mod demo;
mod deploy;
mod disk;
mod doctor;
mod documented;
mod endpoints;
mod failures_kafka;
mod failures_redis;
mod failures_reporter;
mod faults;
mod fencing;
mod guard;
mod hostile_clients;
mod hostile_endpoints;
mod hosting;
mod late;
mod layers;
mod ledger;
mod lengths;
mod library;
mod limits;
mod logging;
mod many;
mod metrics;
mod named;
mod page;
mod recorded;
mod refusals;
mod replicas;
mod reporting;
mod retries;
mod servers;
mod settings;
mod signatures;
mod site;
mod spool;
mod startup;
mod tls;
mod told;
mod traces;
mod traps;
mod trial;
mod windows;
mod world;
