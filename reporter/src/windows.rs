//! Reports windows: the replica with the lease counts, publishes and records.
//!
//! There is one lease for all counters of a namespace.
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
use crate::kafka::Publish;
use crate::metrics::WindowMetrics;
use crate::periods::Periods;
use crate::store::{Store, is_away};
use ended::Ended;
use leader::Leader;
pub use leader::Used;
pub use lease::{LeaseKeeper, Leases};
use report_store::RedisReportStore;
pub use report_store::{KeepReports, REPORTS_KEPT, keep_reports};
pub use sweeps::SweepThrottle;

/// Leading for longer than this resets the retry backoff.
const A_WHILE: Duration = Duration::from_secs(10);

/// The settings of the window reporting.
#[derive(Clone, Debug)]
pub struct WindowsConfig {
    pub length: WindowLength,
    /// Whether these are the main windows.
    pub is_main: bool,
    /// The time from a window's end to its first report.
    pub grace: Duration,
    /// The allowed lateness: how long after its first report late ids correct a window.
    pub late: Duration,
    /// How long a named counter is reported after its last window with ids.
    pub idle: Duration,
    /// How long reports are kept, and how many.
    pub keep_reports: KeepReports,
    /// The fixed callback, called for every report.
    pub callback: Option<(Endpoint, Method)>,
    pub periods: Periods,
}

impl WindowsConfig {
    /// Returns the configuration for windows of any length, from that for main ones.
    ///
    /// `has_callback` is whether the fixed callback is called for them.
    pub fn of(&self, length: WindowLength, has_callback: bool) -> Self {
        Self {
            length,
            is_main: length == self.length,
            callback: self.callback.clone().filter(|_| has_callback),
            ..self.clone()
        }
    }

    /// Returns the length of the windows, if they are longer than the main ones.
    pub fn longer(&self) -> Option<WindowLength> {
        (!self.is_main).then_some(self.length)
    }

    /// Returns when a window is due to be reported, in Unix milliseconds.
    pub fn due_ms(&self, window: Window) -> u64 {
        window.end_ms() + millis(self.grace)
    }

    /// Returns the last window of a named counter that is due without ids.
    ///
    /// `used_ms` is when an instance last registered the counter, in Unix milliseconds.
    pub fn idle_after(&self, used_ms: u64) -> Window {
        let used = self.length.window_at_ms(used_ms);
        self.length.window_at_ms(used.end_ms() + millis(self.idle) - 1)
    }
}

/// Reports the windows of one counter while this replica holds the lease.
pub struct Reporter<S> {
    leader: Leader<RedisReportStore>,
    leases: Leases<S>,
}

impl<S: Publish> Reporter<S> {
    /// Creates a reporter of the counter whose keys `store` has.
    ///
    /// With `used`, the counter is not reported while it is idle.
    pub fn new(
        config: WindowsConfig,
        store: &Store,
        health: Arc<Health>,
        metrics: WindowMetrics,
        leases: Leases<S>,
        throttle: SweepThrottle,
        used: Option<Used>,
    ) -> Self {
        let leader = Leader {
            report_store: Arc::new(RedisReportStore::new(config.clone(), store.clone())),
            config,
            health,
            metrics,
            counter: store.keys.counter().cloned(),
            partitions: store.partitions(),
            throttle,
            used,
        };
        Self { leader, leases }
    }

    /// Runs until a stop is requested.
    pub async fn run(self, stop: CancellationToken) {
        let mut ledger = None;
        let mut retry = Retry::default();
        while let Some((lease, session)) = stop.run_until_cancelled(self.leases.next()).await {
            self.leader.metrics.lease_held.set(1);
            let begin = Instant::now();
            // A stop lets the current step finish, so that records in Kafka are recorded in Redis.
            let ended = tokio::select! {
                biased;
                ended = self.leader.lead(&lease, session, &mut ledger, &stop) => ended,
                () = lease.lost() => Ended::LeaseLost,
            };
            self.leader.metrics.lease_held.set(0);
            self.leader.set_failed(ended.wrong_type());
            // The next leader reports them, so this replica clears its problem.
            self.leader.report_uncounted_partitions(None);
            if begin.elapsed() > A_WHILE {
                retry.worked();
            }
            match ended {
                Ended::Stopped => {}
                Ended::LeaseLost | Ended::Fenced if stop.is_cancelled() => {}
                // If another replica has fenced this one, the session has logged it.
                Ended::LeaseLost | Ended::Fenced => lease.give_up(),
                // `health` logs it. The lease stays, since other counters can be reported. But in a
                // cluster, another replica may reach a node that this one does not.
                Ended::Failed(ref error) => {
                    tracing::debug!("{ended}");
                    if is_away(error) && lease.held_for() > self.leader.config.periods.hand_over() {
                        lease.give_up();
                    }
                }
            }
            drop(lease);
            stop.run_until_cancelled(tokio::time::sleep(retry.pause())).await;
        }
    }
}
