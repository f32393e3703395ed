//! Reporting windows: one replica holds the lease, counts what is due or late, publishes it, and records that it has.
//!
//! Each news goes the way of `ledger`: written down as pending, published, acknowledged, recorded. What a crash leaves behind:
//! - before it is written down: nothing; the window is counted again
//! - before the recording: the next leader publishes what was written down, exactly as it is, whether Kafka has it or not
//! - after the recording: nothing is left to do. The fixed callback's job is queued by the same script that records

mod books;
mod ended;
mod leader;
mod lease;
mod ledger;
#[cfg(test)]
mod model;
mod pending;
mod ports;
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
use books::RedisBooks;
use ended::Ended;
use leader::Leader;
use lease::Lease;
pub use ledger::KEPT;
pub use sweeps::Pace;

/// Who has led for so long has not failed at once.
const A_WHILE: Duration = Duration::from_secs(10);

/// When windows are reported.
#[derive(Clone, Debug)]
pub struct WindowsConfig {
    pub length: WindowLength,
    /// From a window's end to its first report.
    pub grace: Duration,
    /// From a window's first report on: how long late ids correct it.
    pub late: Duration,
    /// The fixed callback, called for every report.
    pub callback: Option<(Endpoint, Method)>,
    pub periods: Periods,
}

impl WindowsConfig {
    /// When a window is due to be reported, in Unix milliseconds.
    pub fn due_ms(&self, window: Window) -> u64 {
        window.end_ms() + millis(self.grace)
    }
}

/// Reports windows for as long as it holds the lease.
pub struct Reporter<K = Publisher> {
    leader: Leader<RedisBooks>,
    store: Store,
    kafka: K,
    replica: String,
}

impl<K: Sessions> Reporter<K> {
    /// A reporter that calls itself `replica` in the lease.
    pub fn new(
        config: WindowsConfig,
        store: Store,
        health: Arc<Health>,
        kafka: K,
        metrics: &Metrics,
        replica: String,
        pace: Pace,
    ) -> Self {
        let leader = Leader {
            books: Arc::new(RedisBooks::new(config.clone(), store.clone())),
            config,
            health,
            metrics: metrics.windows(store.keys.counter()),
            counter: store.keys.counter().cloned(),
            partitions: store.partitions(),
            pace,
        };
        Self {
            leader,
            store,
            kafka,
            replica,
        }
    }

    /// Runs until a stop is asked for.
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
        // Whether it goes on after an error, so that there is nothing new to say.
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
            // A stop lets the step under way finish, so that what Kafka has is recorded.
            let ended = tokio::select! {
                biased;
                ended = self.leader.lead(&lease, self.kafka.session(), &mut ledger, &stop) => ended,
                () = lease.lost() => Ended::LeaseLost,
            };
            metrics.lease_held.set(0);
            // Who leads from now on finds out.
            self.leader.tell_uncounted(None);
            if begin.elapsed() > A_WHILE {
                retry.worked();
            }
            match ended {
                Ended::Stopped => {}
                Ended::LeaseLost | Ended::Fenced if stop.is_cancelled() => {}
                // By whom, if by somebody who publishes, the session has said.
                Ended::LeaseLost | Ended::Fenced => {
                    tracing::warn!(counter, replica = self.replica, "lost the lease");
                }
                // Said by `health`.
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
