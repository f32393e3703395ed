//! Reports windows: the replica with the lease counts, publishes and records.
//!
//! The leader counts windows that are due and windows that late ids may still correct. Each pending
//! revision takes the path of `ledger`: stored as pending, published, acknowledged, recorded. A
//! crash leaves behind:
//! - before it is stored as pending: nothing; the window is counted again
//! - before it is recorded: the next leader publishes the pending record unchanged, whether Kafka
//!   has it or not
//! - after it is recorded: no work. The script that records also queues the job of the fixed
//!   callback

mod ended;
mod leader;
mod lease;
mod ledger;
#[cfg(test)]
mod model;
mod pending;
mod ports;
mod report_store;
mod sweeps;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use verve_protocol::{Endpoint, Method, Window, WindowLength};

use crate::backoff::Retry;
use crate::clock::millis;
use crate::health::Health;
use crate::kafka::{Publisher, Sessions};
use crate::metrics::Metrics;
use crate::periods::Periods;
use crate::store::Store;
use ended::Ended;
use leader::Leader;
use lease::Lease;
pub use ledger::KEPT;
use report_store::RedisReportStore;
pub use sweeps::SweepThrottle;

/// Leading for longer than this resets the retry backoff.
const A_WHILE: Duration = Duration::from_secs(10);

/// The settings of the window reporting.
#[derive(Clone, Debug)]
pub struct WindowsConfig {
    pub length: WindowLength,
    /// The time from a window's end to its first report.
    pub grace: Duration,
    /// The allowed lateness: how long after its first report late ids correct a window.
    pub late: Duration,
    /// The fixed callback, called for every report.
    pub callback: Option<(Endpoint, Method)>,
    pub periods: Periods,
}

impl WindowsConfig {
    /// Returns when a window is due to be reported, in Unix milliseconds.
    pub fn due_ms(&self, window: Window) -> u64 {
        window.end_ms() + millis(self.grace)
    }
}

/// Reports windows while it holds the lease.
pub struct Reporter<K = Publisher> {
    leader: Leader<RedisReportStore>,
    store: Store,
    kafka: K,
    replica: String,
}

impl<K: Sessions> Reporter<K> {
    /// Creates a reporter that uses the name `replica` in the lease.
    pub fn new(
        config: WindowsConfig,
        store: Store,
        health: Arc<Health>,
        kafka: K,
        metrics: &Metrics,
        replica: String,
        throttle: SweepThrottle,
    ) -> Self {
        let leader = Leader {
            report_store: Arc::new(RedisReportStore::new(config.clone(), store.clone())),
            config,
            health,
            metrics: metrics.windows(store.keys.counter()),
            counter: store.keys.counter().cloned(),
            partitions: store.partitions(),
            throttle,
        };
        Self {
            leader,
            store,
            kafka,
            replica,
        }
    }

    /// Runs until a stop is requested.
    pub async fn run(self, stop: CancellationToken) {
        let Leader {
            config,
            health,
            metrics,
            ..
        } = &self.leader;
        let counter = self.leader.counter();
        let mut ledger = None;
        let mut retry = Retry::default();
        // Set after an error: a lease that is then acquired without waiting is not logged again.
        let mut goes_on = false;
        while let Some(lease) = stop
            .run_until_cancelled(Lease::acquire(
                &self.store,
                health,
                config.length,
                &self.replica,
                config.periods,
            ))
            .await
        {
            if !std::mem::take(&mut goes_on) || lease.was_waited_for() {
                tracing::info!(counter, replica = self.replica, "holding the lease: reporting windows");
            }
            metrics.lease_held.set(1);
            let begin = Instant::now();
            // A stop lets the current step finish, so that records in Kafka are recorded in Redis.
            let ended = tokio::select! {
                biased;
                ended = self.leader.lead(&lease, self.kafka.session(), &mut ledger, &stop) => ended,
                () = lease.lost() => Ended::LeaseLost,
            };
            metrics.lease_held.set(0);
            // The next leader reports them, so this replica clears its problem.
            self.leader.report_uncounted_partitions(None);
            if begin.elapsed() > A_WHILE {
                retry.worked();
            }
            match ended {
                Ended::Stopped => {}
                Ended::LeaseLost | Ended::Fenced if stop.is_cancelled() => {}
                // If another replica has fenced this one, the session has logged it.
                Ended::LeaseLost | Ended::Fenced => {
                    tracing::warn!(counter, replica = self.replica, "lost the lease");
                }
                // `health` logs it.
                Ended::Failed(_) => {
                    tracing::debug!("{ended}");
                    goes_on = true;
                }
            }
            lease.release().await;
            stop.run_until_cancelled(tokio::time::sleep(retry.pause())).await;
        }
    }
}
