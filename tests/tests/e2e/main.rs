//! Tests Verve end to end, with real parts.
//!
//! These are a real redis-server, Kafka, the built component in `verve-host` and, where it is
//! available, in Spin, and the built reporter.
//!
//! The tests use only the contract (`docs/`, the README, `verve-protocol`), not the internals of
//! the programs. No test is skipped: if a program is missing, its tests fail.

mod component {
    pub mod callback_jobs;
    pub mod component_log;
    pub mod counters;
    pub mod counting;
    pub mod footprint;
    pub mod hosts;
    pub mod http_contract;
    pub mod limits;
    pub mod many_ids;
    pub mod spool;
    pub mod worlds;
}
mod reporter {
    pub mod callback_bounds;
    pub mod callback_retries;
    pub mod callbacks;
    pub mod clocks;
    pub mod counts;
    pub mod dead_callbacks;
    pub mod doctor;
    pub mod fencing;
    pub mod kept_reports;
    pub mod late;
    pub mod longer_windows;
    pub mod metrics;
    pub mod named_counters;
    pub mod page;
    pub mod replicas;
    pub mod reporter_log;
    pub mod reporting;
    pub mod settings;
    pub mod top;
    pub mod traces;
    pub mod window_lengths;
    pub mod windows;
}
mod cluster {
    pub mod nodes;
}
mod faults {
    pub mod chaos;
    pub mod disk;
    pub mod kafka_fails;
    pub mod processes_fail;
    pub mod queue_traps;
    pub mod redis_away;
    pub mod redis_fails;
    pub mod refusals;
    pub mod trial;
}
mod security {
    pub mod hostile_clients;
    pub mod hostile_endpoints;
    pub mod private_networks;
    pub mod redis_users;
    pub mod signatures;
    pub mod tls;
}
mod library {
    pub mod examples;
    pub mod giving_up;
}
mod deploy {
    pub mod balanced;
    pub mod containers;
    pub mod demo;
    pub mod redis_kinds;
    pub mod redis_model;
    pub mod redis_scripts;
    pub mod startup;
    pub mod step_by_step;
    pub mod systemd;
}
mod ledger;
mod site;
