//! Named counters: found in Redis, each reported separately.
//!
//! They are reported like the counter without a name, but without the fixed callback. Every replica
//! looks once a second for those that are in use, and the one with the lease reports all of them. A
//! counter that is idle costs nothing until ids are added to it again. The replica with the lease
//! also forgets named counters to which no ids are added any more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use redis::{RedisResult, Script};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use verve_protocol::counter_name::UNUSED_SECONDS;
use verve_protocol::scripts::FORGET_COUNTERS;
use verve_protocol::{CounterName, Window};

use crate::clock::RedisClock;
use crate::health::Health;
use crate::kafka::Publish;
use crate::metrics::{Metrics, OTHERS, WindowMetrics, gauge};
use crate::overview::{self, WindowSnapshot};
use crate::store::Store;
use crate::windows::{Leases, Reporter, SweepThrottle, Used, WindowsConfig};

/// How often Redis is asked for the list of named counters.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A named counter, as last seen.
#[derive(Clone, Debug)]
pub struct CounterSnapshot {
    /// Its name.
    pub name: CounterName,
    /// The open window.
    pub current: WindowSnapshot,
    /// The window before it.
    pub last: WindowSnapshot,
}

/// The parts of a reporter of windows.
pub struct Parts<S> {
    pub config: WindowsConfig,
    pub store: Store,
    pub health: Arc<Health>,
    pub metrics: Metrics,
    pub leases: Leases<S>,
    pub throttle: SweepThrottle,
    /// How many named counters have metrics of their own.
    pub own_metrics: usize,
}

/// Looks for named counters, and runs their reporting.
pub struct Named<S> {
    parts: Parts<S>,
    running: BTreeMap<CounterName, Running>,
    snapshot: watch::Sender<Vec<CounterSnapshot>>,
    /// Whether it has not looked for named counters yet.
    is_new: bool,
}

/// The reporting of one named counter.
struct Running {
    store: Store,
    metrics: WindowMetrics,
    used: Used,
    stop: CancellationToken,
    task: JoinHandle<()>,
    /// The windows as last seen.
    /// `None` while it is unknown what other replicas have counted of them.
    snapshot: Option<Vec<WindowSnapshot>>,
    /// The first window not known to be reported.
    next: Window,
    /// How long a window has been due, in seconds.
    overdue_s: u64,
    /// Whether no window was due when last seen.
    is_idle: bool,
}

impl<S: Publish + 'static> Named<S> {
    /// Creates it without any counter, and returns where their snapshots appear.
    pub fn new(parts: Parts<S>) -> (Self, watch::Receiver<Vec<CounterSnapshot>>) {
        let (snapshot, receiver) = watch::channel(Vec::new());
        let named = Self {
            parts,
            running: BTreeMap::new(),
            snapshot,
            is_new: true,
        };
        (named, receiver)
    }

    /// Runs until a stop is requested and the reporting of each has stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            // The connection logs it.
            if let Err(error) = self.look(&stop).await {
                tracing::debug!("cannot look for named counters: {error}");
            }
            stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await;
        }
        for running in std::mem::take(&mut self.running).into_values() {
            // The task has logged its own failure.
            let _ = running.task.await;
        }
    }

    async fn look(&mut self, stop: &CancellationToken) -> RedisResult<()> {
        if self.parts.leases.are_held()
            && let Err(error) = self.forget().await
        {
            tracing::debug!("cannot forget named counters: {error}");
        }
        self.remove_ended().await;
        let clock = self.parts.store.clock().await?;
        let in_use = self.in_use().await?;
        for (name, running) in &self.running {
            match in_use.get(name) {
                Some(used_ms) => running.used.is_at_ms(*used_ms),
                // It finishes its step before it ends. Until then it is not started again.
                None => running.stop.cancel(),
            }
        }
        let current = self.parts.config.length.window_at_ms(clock.now_ms());
        let windows: Vec<Window> = current.previous().into_iter().chain([current]).collect();
        let is_leading = self.parts.leases.are_held();
        let looks = self
            .running
            .iter_mut()
            .map(|(name, running)| running.look(name, &windows, &self.parts.config, clock, is_leading));
        let looks: Vec<RedisResult<Option<CounterSnapshot>>> = futures::future::join_all(looks).await;
        // A counter that cannot be read now, since a cluster node is unreachable, is shown again
        // after the next look.
        let snapshot = looks
            .into_iter()
            .filter_map(|snapshot| snapshot.ok().flatten())
            .collect();
        self.set_gauges();
        let own = self.running.values().filter(|running| !running.metrics.are_shared);
        let mut own = own.count();
        for (name, used_ms) in in_use {
            if !self.running.contains_key(&name) {
                tracing::info!(counter = name.as_str(), "a named counter is in use");
                // A counter with the name of the others must not remove their metrics.
                let metrics = if own < self.parts.own_metrics && name.as_str() != OTHERS {
                    own += 1;
                    self.parts.metrics.windows(Some(&name))
                } else {
                    self.parts.metrics.other_windows()
                };
                let running = self.start(&name, metrics, used_ms, current, stop.child_token());
                self.running.insert(name, running);
            }
        }
        self.is_new = false;
        self.snapshot.send_replace(snapshot);
        Ok(())
    }

    /// Sets the gauges of all, those of several counters to the sum or the maximum.
    fn set_gauges(&self) {
        let mut gauges: BTreeMap<Option<&CounterName>, (&WindowMetrics, [u64; 3])> = BTreeMap::new();
        for (name, running) in &self.running {
            let of = Some(name).filter(|_| !running.metrics.are_shared);
            let (_, [last, current, overdue_s]) = gauges.entry(of).or_insert((&running.metrics, [0; 3]));
            for (sum, snapshot) in [last, current].into_iter().zip(running.snapshot.iter().flatten()) {
                *sum += snapshot.unique().unwrap_or_default();
            }
            *overdue_s = running.overdue_s.max(*overdue_s);
        }
        for (metrics, [last, current, overdue_s]) in gauges.into_values() {
            metrics.unique_ids("last", last);
            metrics.unique_ids("current", current);
            metrics.window_overdue.set(gauge(overdue_s));
        }
    }

    /// Removes ended tasks, and panics if one of them has panicked.
    /// The reporter then ends, and is started again.
    async fn remove_ended(&mut self) {
        for (_, running) in self.running.extract_if(.., |_, running| running.task.is_finished()) {
            running.metrics.forget();
            if let Err(error) = running.task.await
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }

    /// Returns the named counters in use, each with its last registration.
    ///
    /// The time is in Unix milliseconds.
    async fn in_use(&self) -> RedisResult<BTreeMap<CounterName, u64>> {
        let mut range = redis::cmd("ZRANGE");
        range.arg(self.parts.store.keys.counters_in_use());
        range.arg(0).arg(-1).arg("WITHSCORES");
        let counters: Vec<(String, f64)> = self.parts.store.redis().command(&range).await?;
        // Ignore members that are not valid names: no instance has registered them.
        let named = |(name, used_s): (String, f64)| Some((name.parse().ok()?, (used_s * 1000.0) as u64));
        Ok(counters.into_iter().filter_map(named).collect())
    }

    fn start(
        &self,
        name: &CounterName,
        metrics: WindowMetrics,
        used_ms: u64,
        current: Window,
        stop: CancellationToken,
    ) -> Running {
        let parts = &self.parts;
        let store = parts.store.of(Some(name));
        let config = WindowsConfig {
            callback: None,
            ..parts.config.clone()
        };
        let used = Used::default();
        used.is_at_ms(used_ms);
        let reporter = Reporter::new(
            config,
            &store,
            parts.health.clone(),
            metrics.clone(),
            parts.leases.clone(),
            parts.throttle.clone(),
            Some(used.clone()),
        );
        Running {
            metrics,
            store,
            used,
            task: tokio::spawn(reporter.run(stop.clone())),
            stop,
            snapshot: (!self.is_new).then(Vec::new),
            next: current,
            overdue_s: 0,
            is_idle: false,
        }
    }

    /// Forgets counters without ids for long, and deletes their reports.
    /// A counter to which ids are added at the same time is found again.
    async fn forget(&self) -> RedisResult<()> {
        let keys = &self.parts.store.keys;
        let script = Script::new(FORGET_COUNTERS);
        let mut forget = script.key(keys.counters());
        forget.key(keys.counters_in_use());
        let unused: Vec<String> = self.parts.store.redis().script(forget.arg(UNUSED_SECONDS)).await?;
        for name in unused.iter().filter_map(|name| name.parse::<CounterName>().ok()) {
            tracing::info!(counter = name.as_str(), "an unused named counter was forgotten");
            let (keys, length) = (self.parts.store.keys.named(name), self.parts.config.length);
            let mut delete = redis::cmd("DEL");
            delete
                .arg(keys.reports(length))
                .arg(keys.reports_pending(length))
                .arg(keys.reports_open(length))
                .arg(keys.reports_progress(length))
                .arg(keys.reports_from(length));
            self.parts.store.redis().command::<u64>(&delete).await?;
        }
        Ok(())
    }
}

impl Running {
    /// Reads the last window and the open one.
    async fn look(
        &mut self,
        name: &CounterName,
        windows: &[Window],
        config: &WindowsConfig,
        clock: RedisClock,
        is_leading: bool,
    ) -> RedisResult<Option<CounterSnapshot>> {
        let snapshot = WindowSnapshot::read(&self.store, windows).await?;
        let [last, current] = snapshot.as_slice() else {
            return Ok(None);
        };
        if let Some(reported) = snapshot.iter().rev().find(|snapshot| snapshot.report.is_some()) {
            self.next = self.next.max(reported.window.next());
        }
        let used_ms = self.used.at_ms();
        let was_idle = std::mem::replace(&mut self.is_idle, self.next > config.idle_after(used_ms));
        if was_idle && !self.is_idle {
            // The windows in between are not due.
            self.next = self.next.max(config.length.window_at_ms(used_ms));
        }
        let overdue_ms = clock.now_ms().saturating_sub(config.due_ms(self.next));
        self.overdue_s = if self.is_idle { 0 } else { overdue_ms / 1000 };
        let counter = CounterSnapshot {
            name: name.clone(),
            current: *current,
            last: *last,
        };
        if let Some(before) = &self.snapshot
            && is_leading
        {
            overview::count(&self.metrics, before, &snapshot);
        }
        self.snapshot = Some(snapshot);
        Ok(Some(counter))
    }
}
