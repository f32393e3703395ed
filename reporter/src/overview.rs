//! The live state of Redis, for `/metrics` and the page.
//!
//! Every replica reads it once a second. It does not change what is reported. While Redis is
//! unreachable, the last snapshot stays.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use redis::RedisResult;
use redis::streams::StreamRangeReply;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use verve_protocol::keys::stats;
use verve_protocol::spool_state::{SPOOL_STATE_SECONDS, spool_counted};
use verve_protocol::{Report, SpoolState, Window, WindowLength};

use crate::clock::RedisClock;
use crate::health::{Health, Problem};
use crate::metrics::{Metrics, OUTCOMES, WindowMetrics, gauge};
use crate::store::Store;
use crate::windows::WindowsConfig;

/// The interval of the reads.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The delay of a due window from which on it is a problem.
const OVERDUE: Duration = Duration::from_secs(10);
/// The minimum number of windows in a snapshot, for windows of an hour or a day.
const FEWEST: u64 = 24;
/// The maximum number of windows in a snapshot, for windows of a second.
const MOST: u64 = 180;

/// The states of spools, by name.
pub type Spools = BTreeMap<String, SpoolState>;

/// The last state that was read.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Redis' clock, as of its last answer; `None` if it has not answered yet.
    pub clock: Option<RedisClock>,
    /// The windows of the last hour, within the limits.
    ///
    /// The oldest is first, and the current one is last.
    pub windows: Vec<WindowSnapshot>,
    pub jobs: Jobs,
    /// The reported spools, by name; `None` if Redis has not answered yet.
    pub spools: Option<Spools>,
    /// The replica that reports windows.
    pub leader: Option<String>,
    /// What the reporter depends on, each with its error if it is not reachable.
    pub dependencies: BTreeMap<String, Option<Problem>>,
    /// How long the oldest due window has not been reported, in seconds.
    pub overdue_s: u64,
    /// The newest window with ids or requests.
    ///
    /// Since this process began, or in the hour before.
    pub newest_with_ids: Option<Window>,
}

/// The known state of a window.
#[derive(Clone, Copy, Debug)]
pub struct WindowSnapshot {
    pub window: Window,
    /// The number of ids in Redis now, for the current window and the one before.
    pub ids: Option<u64>,
    pub report: Option<Report>,
    /// Requests by outcome, in the order of [`OUTCOMES`].
    pub requests: [u64; OUTCOMES.len()],
}

impl Snapshot {
    /// Returns the seconds since the end of the newest window with ids.
    ///
    /// Returns 0 if ids still arrive, or have never arrived.
    pub fn silent_s(&self) -> u64 {
        let (Some(clock), Some(newest)) = (self.clock, self.newest_with_ids) else {
            return 0;
        };
        let now_s = clock.now_ms() / 1000;
        // The first id of a window may arrive near its end.
        if now_s < newest.next().end() {
            return 0;
        }
        now_s - newest.end()
    }

    /// Returns the number of ids and callback jobs in all reported spools.
    pub fn spooled(&self) -> u64 {
        let all = self.spools.iter().flat_map(BTreeMap::values);
        all.map(|state| state.depth).sum()
    }
}

/// The callback jobs in Redis.
#[derive(Clone, Copy, Debug, Default)]
pub struct Jobs {
    /// New jobs, and those in their first attempt.
    pub stream: u64,
    /// Jobs that failed, and wait for another attempt.
    pub retry: u64,
    /// Dead letters.
    pub dead: u64,
    /// The age of the oldest job in the stream, in seconds; 0 if there is none.
    pub oldest_s: u64,
}

impl WindowSnapshot {
    /// Reads the known state of these windows, which are given oldest first.
    ///
    /// Ids are counted only for the last two; the others are reported.
    ///
    /// # Errors
    /// If Redis fails.
    pub async fn read(store: &Store, windows: &[Window]) -> RedisResult<Vec<Self>> {
        let with_sets = &windows[windows.len().saturating_sub(2)..];
        let (requests, reports, ids) =
            futures::try_join!(store.outcomes(windows), store.reports(windows), store.counts(with_sets),)?;
        let mut read: Vec<Self> = (windows.iter().zip(reports).zip(requests))
            .map(|((window, report), requests)| Self {
                window: *window,
                ids: None,
                report,
                requests,
            })
            .collect();
        let newest = read.iter_mut().rev().zip(ids.into_iter().rev());
        newest.for_each(|(window, ids)| window.ids = Some(ids));
        Ok(read)
    }

    /// Returns the known unique ids: in Redis, or as reported once the set is removed.
    pub fn unique(&self) -> Option<u64> {
        self.ids.max(self.report.map(|report| report.count))
    }

    /// Returns whether anything is known of the window.
    pub fn is_known(&self) -> bool {
        self.unique().is_some() || self.requests() > 0
    }

    /// Returns the requests with this outcome.
    pub fn requests_of(&self, outcome: &str) -> u64 {
        let mut by_outcome = OUTCOMES.iter().zip(self.requests);
        by_outcome
            .find(|(name, _)| **name == outcome)
            .map_or(0, |(_, requests)| requests)
    }

    /// Returns all requests: as counted now, or as reported.
    ///
    /// The reported number remains when the statistics have expired.
    pub fn requests(&self) -> u64 {
        let reported = self.report.map_or(0, |report| report.requests);
        self.requests.iter().sum::<u64>().max(reported)
    }

    /// Returns the share of duplicates among the recorded requests, from 0 to 1.
    ///
    /// `None` if there are no recorded requests.
    pub fn duplicates(&self) -> Option<f64> {
        let counted = [stats::NEW, stats::DUPLICATE].map(|outcome| self.requests_of(outcome));
        let [new, duplicates] = match (counted, self.report) {
            ([0, 0], Some(report)) => [report.requests.saturating_sub(report.duplicates), report.duplicates],
            (counted, _) => counted,
        };
        (new + duplicates > 0).then(|| duplicates as f64 / (new + duplicates) as f64)
    }
}

/// Reads the live state once a second.
pub struct Overview {
    config: WindowsConfig,
    store: Store,
    health: Arc<Health>,
    metrics: Metrics,
    windows: WindowMetrics,
    snapshot: watch::Sender<Snapshot>,
    /// The first window not known to be reported; `None` if Redis has not answered yet.
    next: Option<Window>,
}

impl Overview {
    /// Creates an overview, and the receiver of its snapshots.
    pub fn new(
        config: WindowsConfig,
        store: Store,
        health: Arc<Health>,
        metrics: Metrics,
    ) -> (Self, watch::Receiver<Snapshot>) {
        let (snapshot, receiver) = watch::channel(Snapshot {
            dependencies: health.states(),
            ..Snapshot::default()
        });
        let overview = Self {
            next: None,
            config,
            store,
            health,
            windows: metrics.windows(None, None),
            metrics,
            snapshot,
        };
        (overview, receiver)
    }

    /// Runs until a stop is requested.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            self.look().await;
            stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await;
        }
    }

    async fn look(&mut self) {
        let mut snapshot = self.snapshot.borrow().clone();
        self.look_at_spools(&mut snapshot).await;
        match self.read(snapshot.clock.is_some()).await {
            Ok(read) => {
                if snapshot.clock.is_some() && self.windows.lease_held.get() == 1 {
                    count(&self.windows, &snapshot.windows, &read.windows);
                }
                snapshot = Snapshot {
                    spools: snapshot.spools,
                    // Drops a future window, which remains if the clock was set back.
                    newest_with_ids: (snapshot.newest_with_ids)
                        .filter(|newest| Some(*newest) <= read.windows.last().map(|current| current.window))
                        .max(newest_with_ids(&read.windows)),
                    ..read
                };
            }
            // The connection, or the code that needs the answer, reports the error.
            Err(error) => tracing::debug!("cannot read the state from Redis: {error}"),
        }
        snapshot.dependencies = self.health.states();
        let next = snapshot.clock.zip(self.next);
        snapshot.overdue_s = next.map_or(0, |(clock, next)| {
            clock.now_ms().saturating_sub(self.config.due_ms(next)) / 1000
        });
        let is_overdue = snapshot.overdue_s >= OVERDUE.as_secs();
        self.health.set_overdue(self.next.filter(|_| is_overdue));
        self.export(&snapshot);
        self.snapshot.send_replace(snapshot);
    }

    /// Reads a snapshot. `again` means that it is not the first one.
    async fn read(&mut self, again: bool) -> RedisResult<Snapshot> {
        let keys = &self.store.keys;
        let clock = self.store.clock().await?;
        let windows = latest(self.config.length, clock.now_ms());
        let mut pipe = redis::pipe();
        pipe.get(keys.lease(self.config.length));
        pipe.xlen(keys.callbacks())
            .zcard(keys.callbacks_retry())
            .xlen(keys.callbacks_dead());
        pipe.xrange_count(keys.callbacks(), "-", "+", 1);
        type Reply = (Option<String>, u64, u64, u64, StreamRangeReply);
        let first = self.store.redis();
        let ((leader, stream, retry, dead, oldest), read) =
            futures::try_join!(first.run::<Reply>(&pipe), WindowSnapshot::read(&self.store, &windows))?;
        self.follow(&read, again);
        let now_s = clock.now_ms() / 1000;
        let oldest_s = oldest.ids.first().and_then(|entry| entered_ms(&entry.id));
        Ok(Snapshot {
            clock: Some(clock),
            windows: read,
            jobs: Jobs {
                stream,
                retry,
                dead,
                oldest_s: oldest_s.map_or(0, |ms| now_s.saturating_sub(ms / 1000)),
            },
            spools: None,
            leader,
            dependencies: BTreeMap::new(),
            overdue_s: 0,
            newest_with_ids: None,
        })
    }

    /// Updates the next window to report.
    ///
    /// Windows are reported in order, so it is the one after the newest report. A window that was
    /// due before this process began is still due.
    fn follow(&mut self, read: &[WindowSnapshot], again: bool) {
        if let Some(newest) = read.iter().rev().find(|snapshot| snapshot.report.is_some()) {
            let next = Some(newest.window.next());
            self.next = if again { self.next.max(next) } else { next };
        } else if self.next.is_none() {
            self.next = read.last().map(|current| current.window);
        }
    }

    /// Reads the reported states of spools.
    ///
    /// This is a separate request, because it needs only the Redis node that has their key.
    async fn look_at_spools(&self, snapshot: &mut Snapshot) {
        let mut pipe = redis::pipe();
        pipe.hgetall(self.store.keys.spools());
        let Ok((read,)) = self.store.redis().run::<(BTreeMap<String, String>,)>(&pipe).await else {
            return;
        };
        // A state that cannot be parsed is a number of counted ids, or is from another version and
        // is removed with its key.
        let now: Spools = (read.iter())
            .filter_map(|(name, state)| Some((name.clone(), state.parse().ok()?)))
            .collect();
        if self.windows.lease_held.get() == 1 {
            let is_counted = self.count_drained(&read, &now).await;
            if let Some(before) = &snapshot.spools
                && is_counted
            {
                let now_s = snapshot.clock.map_or(0, |clock| clock.now_ms() / 1000);
                self.forget(before, &now, now_s).await;
            }
        }
        snapshot.spools = Some(now);
    }

    /// Adds the ids that were drained since any replica last counted them.
    ///
    /// The counted number is stored next to the spool's state. Ids that are drained while there is
    /// no leader are therefore counted by the next leader.
    ///
    /// Returns whether the numbers could be stored: a full Redis refuses them.
    async fn count_drained(&self, read: &BTreeMap<String, String>, now: &Spools) -> bool {
        let mut drained = 0;
        let mut counted = Vec::new();
        for (name, state) in now {
            let field = spool_counted(name);
            let before = read.get(&field).and_then(|count| count.parse().ok()).unwrap_or(0);
            if state.drained > before {
                drained += state.drained - before;
                counted.push((field, state.drained));
            }
        }
        if counted.is_empty() {
            return true;
        }
        let mut count = redis::cmd("HSET");
        count.arg(self.store.keys.spools()).arg(&counted);
        match self.store.redis().command::<u64>(&count).await {
            Ok(_) => {
                self.metrics.drained_ids.inc_by(drained);
                true
            }
            // The next read repeats it, unless Redis has run it and only the answer was lost.
            Err(error) => {
                tracing::debug!("cannot count what was drained: {error}");
                false
            }
        }
    }

    /// Forgets empty spools, and those that were not reported for long.
    ///
    /// An empty spool must have been empty at the last read, too. Only the leader forgets spools,
    /// after it has counted them.
    async fn forget(&self, before: &Spools, now: &Spools, now_s: u64) {
        let mut pipe = redis::pipe();
        for (name, state) in now {
            let is_empty = state.depth == 0 && before.get(name) == Some(state);
            if is_empty || state.recorded_s + SPOOL_STATE_SECONDS < now_s {
                pipe.hdel(self.store.keys.spools(), &[name, &spool_counted(name)]);
            }
        }
        if !pipe.is_empty()
            && let Err(error) = self.store.redis().run::<Vec<u64>>(&pipe).await
        {
            // The next read repeats it.
            tracing::debug!("cannot forget spools: {error}");
        }
    }

    fn export(&self, snapshot: &Snapshot) {
        let metrics = &self.metrics;
        for (name, error) in &snapshot.dependencies {
            metrics.dependency(name, error.is_none());
        }
        self.windows.window_overdue.set(gauge(snapshot.overdue_s));
        metrics.spool_depth.set(gauge(snapshot.spooled()));
        metrics.silent.set(gauge(snapshot.silent_s()));
        if snapshot.clock.is_none() {
            return;
        }
        let mut newest = snapshot
            .windows
            .iter()
            .rev()
            .map(|snapshot| snapshot.unique().unwrap_or_default());
        self.windows.unique_ids("current", newest.next().unwrap_or_default());
        self.windows.unique_ids("last", newest.next().unwrap_or_default());
        metrics.callback_jobs("stream", snapshot.jobs.stream);
        metrics.callback_jobs("retry", snapshot.jobs.retry);
        metrics.callback_jobs("dead", snapshot.jobs.dead);
        metrics.oldest_job_age.set(gauge(snapshot.jobs.oldest_s));
    }
}

/// Adds the requests that are new since the last read.
///
/// Nothing is therefore counted twice when another replica takes over.
pub fn count(metrics: &WindowMetrics, before: &[WindowSnapshot], now: &[WindowSnapshot]) {
    let before: BTreeMap<Window, [u64; OUTCOMES.len()]> = before
        .iter()
        .map(|snapshot| (snapshot.window, snapshot.requests))
        .collect();
    for snapshot in now {
        let counted = before.get(&snapshot.window).copied().unwrap_or_default();
        for ((outcome, now), counted) in OUTCOMES.iter().zip(snapshot.requests).zip(counted) {
            // There are fewer than before if Redis has lost its data.
            metrics.requests(outcome, now.saturating_sub(counted));
        }
    }
}

fn newest_with_ids(windows: &[WindowSnapshot]) -> Option<Window> {
    let mut newest = windows.iter().rev();
    let with_ids = newest.find(|snapshot| snapshot.unique().is_some_and(|ids| ids > 0) || snapshot.requests() > 0);
    with_ids.map(|snapshot| snapshot.window)
}

/// Returns the windows of the last hour with the current one, within the limits.
pub fn latest(length: WindowLength, now_ms: u64) -> Vec<Window> {
    let windows = (3600 / length.seconds()).clamp(FEWEST, MOST);
    up_to(
        length.window_at_ms(now_ms),
        usize::try_from(windows).unwrap_or(usize::MAX),
    )
}

/// Returns this many windows of which `last` is the last, the oldest first.
pub fn up_to(last: Window, number: usize) -> Vec<Window> {
    let newest = std::iter::successors(Some(last), |window| window.previous());
    let mut windows: Vec<Window> = newest.take(number).collect();
    windows.reverse();
    windows
}

/// Returns when an entry of a stream was added, in Unix milliseconds.
fn entered_ms(id: &str) -> Option<u64> {
    id.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_hour_is_looked_at_within_bounds() {
        let windows = |seconds: u32| {
            let length = WindowLength::try_new(seconds).expect("valid");
            latest(length, 1_795_383_012_345)
        };
        for (seconds, expected) in [(1, 180), (20, 180), (60, 60), (300, 24), (86_400, 24)] {
            assert_eq!(windows(seconds).len(), expected, "{seconds}");
        }
        let minutes = windows(60);
        assert_eq!(
            minutes.last().map(ToString::to_string).as_deref(),
            Some("2026-11-22T21:30:00Z")
        );
        assert!(minutes.windows(2).all(|pair| pair[0].next() == pair[1]));
    }

    #[test]
    fn the_age_of_a_job_is_in_its_id() {
        assert_eq!(entered_ms("1795383012345-12"), Some(1_795_383_012_345));
        assert_eq!(entered_ms("x"), None);
    }
}
