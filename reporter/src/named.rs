//! Named counters: found in Redis, each reported by itself, as the one without a name is. They have no callbacks.
//!
//! Every replica looks for them once a second and takes part in the reporting of each. The one that reports the counter without a name forgets those
//! that nobody adds to any more.

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
use crate::kafka::Sessions;
use crate::metrics::{Metrics, WindowMetrics, gauge};
use crate::overview::{self, SeenWindow};
use crate::store::Store;
use crate::windows::{Pace, Reporter, WindowsConfig};

/// How often Redis is asked which there are.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A named counter, as last seen.
#[derive(Clone, Debug)]
pub struct SeenCounter {
    /// Its name.
    pub name: CounterName,
    /// The window that is open.
    pub current: SeenWindow,
    /// The one before.
    pub last: SeenWindow,
}

/// What a reporter of windows is made of.
#[derive(Clone)]
pub struct Parts<K> {
    pub config: WindowsConfig,
    pub store: Store,
    pub health: Arc<Health>,
    pub publisher: K,
    pub metrics: Metrics,
    pub replica: String,
    pub pace: Pace,
}

/// Looks for named counters, and has them reported.
pub struct Named<K> {
    parts: Parts<K>,
    running: BTreeMap<CounterName, Running>,
    seen: watch::Sender<Vec<SeenCounter>>,
    /// Of the counter that has no name: who reports that forgets.
    leading: WindowMetrics,
    /// Whether it has not looked yet.
    is_new: bool,
}

/// The reporting of one.
struct Running {
    store: Store,
    metrics: WindowMetrics,
    stop: CancellationToken,
    task: JoinHandle<()>,
    /// What was seen last; nothing as long as it is not known what others have counted of it.
    seen: Option<Vec<SeenWindow>>,
    /// The first window not known to be reported.
    next: Window,
}

impl<K: Sessions> Named<K> {
    /// None is known yet. Also where they will be seen.
    pub fn new(parts: Parts<K>) -> (Self, watch::Receiver<Vec<SeenCounter>>) {
        let (seen, receiver) = watch::channel(Vec::new());
        let named = Self {
            leading: parts.metrics.windows(None),
            parts,
            running: BTreeMap::new(),
            seen,
            is_new: true,
        };
        (named, receiver)
    }

    /// Runs until a stop is asked for, and until the reporting of each has stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            // Said by its connection.
            if let Err(error) = self.look(&stop).await {
                tracing::debug!("cannot look for named counters: {error}");
            }
            stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await;
        }
        for running in std::mem::take(&mut self.running).into_values() {
            // What it failed by was logged by it.
            let _ = running.task.await;
        }
    }

    async fn look(&mut self, stop: &CancellationToken) -> RedisResult<()> {
        if self.leading.lease_held.get() == 1
            && let Err(error) = self.forget().await
        {
            tracing::debug!("cannot forget named counters: {error}");
        }
        self.end_with_those_that_failed().await;
        let names = self.names().await?;
        let gone = self.running.extract_if(.., |name, _| !names.contains(name));
        for (_, running) in gone {
            running.stop.cancel();
            running.metrics.forget();
        }
        let clock = self.parts.store.clock().await?;
        let current = self.parts.config.length.window_at_ms(clock.now_ms());
        let windows: Vec<Window> = current.previous().into_iter().chain([current]).collect();
        let looks = self
            .running
            .iter_mut()
            .map(|(name, running)| running.look(name, &windows, &self.parts.config, clock));
        let looks: Vec<RedisResult<Option<SeenCounter>>> = futures::future::join_all(looks).await;
        // One of which Redis does not tell now, since a node of a cluster is away, is shown again with the next look.
        let seen = looks.into_iter().filter_map(|seen| seen.ok().flatten()).collect();
        for name in names {
            if !self.running.contains_key(&name) {
                tracing::info!(counter = name.as_str(), "a named counter is in use");
                let running = self.start(&name, current, stop.child_token());
                self.running.insert(name, running);
            }
        }
        self.is_new = false;
        self.seen.send_replace(seen);
        Ok(())
    }

    /// Panics if the reporting of one has: the reporter ends with it, and is started again.
    async fn end_with_those_that_failed(&mut self) {
        for (_, running) in self.running.extract_if(.., |_, running| running.task.is_finished()) {
            if let Err(error) = running.task.await
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }

    /// The names of all, in their order.
    async fn names(&self) -> RedisResult<Vec<CounterName>> {
        let mut range = redis::cmd("ZRANGE");
        range.arg(self.parts.store.keys.counters()).arg(0).arg(-1);
        let names: Vec<String> = self.parts.store.redis().command(&range).await?;
        // Whoever has written another one is not of this kind.
        let mut names: Vec<CounterName> = names.iter().filter_map(|name| name.parse().ok()).collect();
        names.sort();
        Ok(names)
    }

    fn start(&self, name: &CounterName, current: Window, stop: CancellationToken) -> Running {
        let parts = self.parts.clone();
        let store = parts.store.of(Some(name));
        let config = WindowsConfig {
            callback: None,
            ..parts.config
        };
        let publisher = parts.publisher.named(name);
        let reporter = Reporter::new(
            config,
            store.clone(),
            parts.health,
            publisher,
            &parts.metrics,
            parts.replica,
            parts.pace,
        );
        Running {
            metrics: parts.metrics.windows(Some(name)),
            store,
            task: tokio::spawn(reporter.run(stop.clone())),
            stop,
            seen: (!self.is_new).then(Vec::new),
            next: current,
        }
    }

    /// Forgets those that nobody has added to for long, and what was reported of them. One to which somebody adds at the same time is found anew.
    async fn forget(&self) -> RedisResult<()> {
        let key = self.parts.store.keys.counters();
        let unused: Vec<String> = self
            .parts
            .store
            .redis()
            .script(Script::new(FORGET_COUNTERS).key(key).arg(UNUSED_SECONDS))
            .await?;
        for name in unused.iter().filter_map(|name| name.parse::<CounterName>().ok()) {
            tracing::info!(
                counter = name.as_str(),
                "a named counter is not in use any more: forgotten"
            );
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
    /// Looks at the last window and the one that is open.
    async fn look(
        &mut self,
        name: &CounterName,
        windows: &[Window],
        config: &WindowsConfig,
        clock: RedisClock,
    ) -> RedisResult<Option<SeenCounter>> {
        let seen = SeenWindow::read(&self.store, windows).await?;
        let [last, current] = seen.as_slice() else {
            return Ok(None);
        };
        for (window, seen) in [("last", last), ("current", current)] {
            self.metrics.unique_ids(window, seen.unique().unwrap_or_default());
        }
        if let Some(reported) = seen.iter().rev().find(|seen| seen.report.is_some()) {
            self.next = self.next.max(reported.window.next());
        }
        let overdue_s = clock.now_ms().saturating_sub(config.due_ms(self.next)) / 1000;
        self.metrics.window_overdue.set(gauge(overdue_s));
        let counter = SeenCounter {
            name: name.clone(),
            current: *current,
            last: *last,
        };
        if let Some(before) = &self.seen
            && self.metrics.lease_held.get() == 1
        {
            overview::count(&self.metrics, before, &seen);
        }
        self.seen = Some(seen);
        Ok(Some(counter))
    }
}
