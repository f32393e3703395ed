//! The counters in use: found in Redis, each reported separately.
//!
//! There is one [`Named`] for each window length. Named counters are reported like the counter
//! without a name, but without the fixed callback. Every replica looks once a second for those that
//! are in use, and the one with the lease reports all of them. A named counter that is idle costs
//! nothing until ids are added to it again. The replica with the lease also forgets named counters
//! to which no ids are added any more, and removes reports if there are too many.
//!
//! For windows that are longer than the main ones, the counter without a name is always in use.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use redis::{RedisResult, Script};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use verve_protocol::counter_name::UNUSED_SECONDS;
use verve_protocol::scripts::FORGET_COUNTERS;
use verve_protocol::{CounterName, Window, WindowLength, WindowLengths};

use crate::clock::RedisClock;
use crate::health::Health;
use crate::kafka::Publish;
use crate::metrics::{Metrics, OTHERS, WindowMetrics, gauge};
use crate::overview::{self, WindowSnapshot};
use crate::store::Store;
use crate::windows::{Leases, Reporter, SweepThrottle, Used, WindowsConfig, keep_reports};

/// How often Redis is asked for the list of named counters.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often the leader looks whether there are too many reports.
const KEEP_EVERY: Duration = Duration::from_secs(60);

/// How much longer than its reports a counter is kept.
const KEPT_AFTER: Duration = Duration::from_secs(2 * 86_400);

/// A counter, as last seen.
#[derive(Clone, Debug)]
pub struct CounterSnapshot {
    /// Its name; `None` for the counter without a name.
    pub name: Option<CounterName>,
    /// The open window.
    pub current: WindowSnapshot,
    /// The window before it.
    pub last: WindowSnapshot,
}

/// The parts of a reporter of windows.
pub struct Parts<S> {
    /// For main windows.
    pub config: WindowsConfig,
    /// The lengths of windows for which the fixed callback is called.
    pub callback_lengths: Vec<WindowLength>,
    pub store: Store,
    pub health: Arc<Health>,
    pub metrics: Metrics,
    pub leases: Leases<S>,
    pub throttle: SweepThrottle,
    /// How many named counters have metrics of their own.
    pub own_metrics: usize,
}

impl<S> Clone for Parts<S> {
    fn clone(&self) -> Self {
        Self {
            config: self.config.clone(),
            callback_lengths: self.callback_lengths.clone(),
            store: self.store.clone(),
            health: self.health.clone(),
            metrics: self.metrics.clone(),
            leases: self.leases.clone(),
            throttle: self.throttle.clone(),
            own_metrics: self.own_metrics,
        }
    }
}

impl<S: Publish> Parts<S> {
    /// Returns the reporter of the counter without a name, for main windows.
    ///
    /// It takes the parts, since the lease is released only after all [`Leases`] are dropped.
    pub fn unnamed(self) -> Reporter<S> {
        let config = self.config_of(self.config.length);
        let metrics = self.metrics.windows(None, None);
        Reporter::new(
            config,
            &self.store,
            self.health,
            metrics,
            self.leases,
            self.throttle,
            None,
        )
    }

    /// Returns the configuration for windows of a length.
    fn config_of(&self, length: WindowLength) -> WindowsConfig {
        self.config.of(length, self.callback_lengths.contains(&length))
    }
}

/// Looks for counters with windows of one length, and runs their reporting.
pub struct Named<S> {
    /// Its configuration is for windows of this length.
    parts: Parts<S>,
    lengths: WindowLengths,
    /// By name; `None` is the counter without a name.
    running: BTreeMap<Option<CounterName>, Running>,
    snapshot: watch::Sender<Vec<CounterSnapshot>>,
    /// Whether it has not looked for named counters yet.
    is_new: bool,
}

/// The reporting of one counter.
struct Running {
    store: Store,
    metrics: WindowMetrics,
    /// When the counter was last registered, if it has a name.
    used: Option<Used>,
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
    ///
    /// `length` is one of the `lengths`.
    pub fn new(
        mut parts: Parts<S>,
        lengths: &WindowLengths,
        length: WindowLength,
    ) -> (Self, watch::Receiver<Vec<CounterSnapshot>>) {
        let (snapshot, receiver) = watch::channel(Vec::new());
        parts.config = parts.config_of(length);
        let named = Self {
            parts,
            lengths: lengths.clone(),
            running: BTreeMap::new(),
            snapshot,
            is_new: true,
        };
        (named, receiver)
    }

    /// Runs until a stop is requested and the reporting of each has stopped.
    pub async fn run(self, stop: CancellationToken) {
        let keep = keep(self.parts.clone(), stop.clone());
        futures::join!(self.look_often(stop), keep);
    }

    async fn look_often(mut self, stop: CancellationToken) {
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
        if self.parts.config.longer().is_none()
            && self.parts.leases.are_held()
            && let Err(error) = self.forget().await
        {
            tracing::debug!("cannot forget named counters: {error}");
        }
        self.remove_ended().await;
        let clock = self.parts.store.clock().await?;
        let in_use = self.in_use().await?;
        for (name, running) in &self.running {
            match (in_use.get(name), &running.used) {
                (Some(used_ms), Some(used)) => used.is_at_ms(*used_ms),
                (Some(_), None) => {}
                // It finishes its step before it ends. Until then it is not started again.
                (None, _) => running.stop.cancel(),
            }
        }
        let current = self.parts.config.length.window_at_ms(clock.now_ms());
        let shown = overview::up_to(current, 2);
        // Requests are counted in main windows alone.
        let counts_requests = self.parts.config.longer().is_none() && self.parts.leases.are_held();
        let looks = self
            .running
            .iter_mut()
            .map(|(name, running)| running.look(name.as_ref(), &shown, &self.parts.config, clock, counts_requests));
        let looks = futures::future::join_all(looks).await;
        let snapshot = looks.into_iter().flatten().collect();
        self.set_gauges();
        let named = self.running.iter().filter(|(name, _)| name.is_some());
        let own = named.filter(|(_, running)| !running.metrics.are_shared);
        let mut own = own.count();
        for (name, used_ms) in in_use {
            if !self.running.contains_key(&name) {
                if let Some(name) = &name {
                    tracing::info!(
                        counter = name.as_str(),
                        window_seconds = self.parts.config.length.seconds(),
                        "a named counter is in use"
                    );
                }
                // A counter with the name of the others must not remove their metrics.
                let is_own = |name: &CounterName| own < self.parts.own_metrics && name.as_str() != OTHERS;
                let metrics = if name.as_ref().is_none_or(is_own) {
                    own += usize::from(name.is_some());
                    self.parts.metrics.windows(name.as_ref(), self.parts.config.longer())
                } else {
                    self.parts.metrics.other_windows(self.parts.config.longer())
                };
                let running = self.start(name.as_ref(), metrics, used_ms, current, stop.child_token());
                self.running.insert(name, running);
            }
        }
        self.is_new = false;
        self.snapshot.send_replace(snapshot);
        Ok(())
    }

    /// Sets the gauges of all, those of several counters to the sum or the maximum.
    fn set_gauges(&self) {
        let mut gauges: BTreeMap<Option<&Option<CounterName>>, (&WindowMetrics, [u64; 3])> = BTreeMap::new();
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

    /// Returns the counters in use, each with its last registration.
    ///
    /// The time is in Unix milliseconds, and has no meaning for the counter without a name.
    async fn in_use(&self) -> RedisResult<BTreeMap<Option<CounterName>, u64>> {
        let mut range = redis::cmd("ZRANGE");
        range.arg(self.parts.store.keys.counters_in_use(self.parts.config.length));
        range.arg(0).arg(-1).arg("WITHSCORES");
        let counters: Vec<(String, f64)> = self.parts.store.redis().command(&range).await?;
        // Ignore members that are not valid names: no instance has registered them.
        let named = |(name, used_s): (String, f64)| Some((Some(name.parse().ok()?), (used_s * 1000.0) as u64));
        let unnamed = self.parts.config.longer().map(|_| (None, 0));
        Ok(counters.into_iter().filter_map(named).chain(unnamed).collect())
    }

    fn start(
        &self,
        name: Option<&CounterName>,
        metrics: WindowMetrics,
        used_ms: u64,
        current: Window,
        stop: CancellationToken,
    ) -> Running {
        let parts = &self.parts;
        let store = parts.store.of(name);
        let mut config = parts.config.clone();
        config.callback = config.callback.filter(|_| name.is_none());
        let used = name.map(|_| Used::default());
        used.iter().for_each(|used| used.is_at_ms(used_ms));
        let reporter = Reporter::new(
            config,
            &store,
            parts.health.clone(),
            metrics.clone(),
            parts.leases.clone(),
            parts.throttle.clone(),
            used.clone(),
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
        self.lengths.all().for_each(|length| {
            forget.key(keys.counters_in_use(length));
        });
        let kept = self.parts.config.keep_reports.time + KEPT_AFTER;
        let unused_seconds = UNUSED_SECONDS.max(kept.as_secs());
        let unused: Vec<String> = self.parts.store.redis().script(forget.arg(unused_seconds)).await?;
        for name in unused.iter().filter_map(|name| name.parse::<CounterName>().ok()) {
            tracing::info!(counter = name.as_str(), "an unused named counter was forgotten");
            let keys = self.parts.store.keys.named(name);
            let mut delete = redis::cmd("DEL");
            for length in self.lengths.all() {
                delete
                    .arg(keys.reports(length))
                    .arg(keys.reports_pending(length))
                    .arg(keys.reports_open(length))
                    .arg(keys.reports_progress(length))
                    .arg(keys.reports_from(length));
            }
            self.parts.store.redis().command::<u64>(&delete).await?;
        }
        Ok(())
    }
}

/// Removes the oldest reports if there are too many, until a stop is requested.
///
/// The replica with the lease does so.
async fn keep<S: Publish>(parts: Parts<S>, stop: CancellationToken) {
    let keep = async {
        loop {
            if !parts.leases.are_held() {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            let window_seconds = parts.config.length.seconds();
            match keep_reports(&parts.config, &parts.store).await {
                Ok(0) => {}
                Ok(reports) => tracing::info!(
                    reports,
                    window_seconds,
                    "removed the oldest reports: there were too many (--keep-reports)"
                ),
                Err(error) => tracing::warn!(window_seconds, "cannot remove the oldest reports: {error}"),
            }
            tokio::time::sleep(KEEP_EVERY).await;
        }
    };
    stop.run_until_cancelled(keep).await;
}

impl Running {
    /// Reads these two windows, of which the last one is open.
    ///
    /// Returns them as last seen: one that cannot be read now, since a node of a cluster is
    /// unreachable or a key has a wrong type, is still shown.
    async fn look(
        &mut self,
        name: Option<&CounterName>,
        windows: &[Window],
        config: &WindowsConfig,
        clock: RedisClock,
        counts_requests: bool,
    ) -> Option<CounterSnapshot> {
        let newest = self.store.newest(config.length);
        let (newest, snapshot) = futures::join!(newest, WindowSnapshot::read(&self.store, windows));
        if let (Ok(Some(newest)), [last, ..]) = (newest, windows) {
            // A window that has not ended was reported while the clock was ahead.
            self.next = self.next.max(newest.min(*last).next());
        }
        if let Some(used_ms) = self.used.as_ref().map(Used::at_ms) {
            let was_idle = std::mem::replace(&mut self.is_idle, self.next > config.idle_after(used_ms));
            if was_idle && !self.is_idle {
                // The windows in between are not due.
                self.next = self.next.max(config.length.window_at_ms(used_ms));
            }
        }
        let overdue_ms = clock.now_ms().saturating_sub(config.due_ms(self.next));
        self.overdue_s = if self.is_idle { 0 } else { overdue_ms / 1000 };
        match snapshot {
            Ok(snapshot) => {
                if let Some(before) = &self.snapshot
                    && counts_requests
                {
                    overview::count(&self.metrics, before, &snapshot);
                }
                self.snapshot = Some(snapshot);
            }
            // They stay as they were last seen.
            Err(error) => tracing::debug!(
                counter = name.map(CounterName::as_str),
                "cannot read the windows of a counter: {error}"
            ),
        }
        let [last, current] = self.snapshot.as_deref()? else {
            return None;
        };
        Some(CounterSnapshot {
            name: name.cloned(),
            current: *current,
            last: *last,
        })
    }
}
