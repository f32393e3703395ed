//! What is going on now: read from Redis once a second by every replica, for `/metrics` and the page.
//!
//! It looks: nothing here changes what is reported, and a Redis that is away leaves what was seen last.

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

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// From when on a window that is due and not reported is a problem.
const OVERDUE: Duration = Duration::from_secs(10);
/// The fewest windows looked at, for those who count by the hour or the day.
const FEWEST: u64 = 24;
/// The most windows looked at, for those who count by the second.
const MOST: u64 = 180;

/// The state of spools, by name.
pub type Spools = BTreeMap<String, SpoolState>;

/// What was seen last.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Redis' clock, as of its last answer; `None` if it has not answered yet.
    pub clock: Option<RedisClock>,
    /// The last hour, or as many windows as are looked at. Oldest first; the last one is the current one.
    pub windows: Vec<SeenWindow>,
    pub jobs: Jobs,
    /// The spools of edge hosts that were told of, by name; `None` if Redis has not answered yet.
    pub spools: Option<Spools>,
    /// Which replica reports windows.
    pub leader: Option<String>,
    /// What the reporter depends on, each with its error if it is not reachable.
    pub dependencies: BTreeMap<String, Option<Problem>>,
    /// How long the oldest due window has not been reported, in seconds.
    pub overdue_s: u64,
    /// The newest window that had ids or requests, since this process began or in the hour before.
    pub newest_with_ids: Option<Window>,
}

/// A window, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub struct SeenWindow {
    pub window: Window,
    /// The ids in Redis now, of the current window and the one before.
    pub ids: Option<u64>,
    pub report: Option<Report>,
    /// Requests by outcome, in the order of [`OUTCOMES`].
    pub requests: [u64; OUTCOMES.len()],
}

impl Seen {
    /// How long nothing has come any more, in seconds, since the window that has had the last ids; 0 if something comes, or never did.
    pub fn silent_s(&self) -> u64 {
        let (Some(clock), Some(newest)) = (self.clock, self.newest_with_ids) else {
            return 0;
        };
        let now_s = clock.now_ms() / 1000;
        // The first to come to a window may come late in it.
        if now_s < newest.next().end() {
            return 0;
        }
        now_s - newest.end()
    }

    /// The ids and callback jobs in all spools that were told of.
    pub fn spooled(&self) -> u64 {
        let all = self.spools.iter().flat_map(BTreeMap::values);
        all.map(|state| state.depth).sum()
    }
}

/// The callback jobs in Redis.
#[derive(Clone, Copy, Debug, Default)]
pub struct Jobs {
    /// New ones, and those under way for the first time.
    pub stream: u64,
    /// Those that failed, and are waiting for another attempt.
    pub retry: u64,
    /// Those given up on.
    pub dead: u64,
    /// The age of the oldest in the stream, in seconds; 0 if there is none.
    pub oldest_s: u64,
}

impl SeenWindow {
    /// What is known of these windows, the oldest first. Of the last two alone the ids are counted: the others are reported.
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

    /// The unique ids known of: those in Redis, or those reported once the set is gone.
    pub fn unique(&self) -> Option<u64> {
        self.ids.max(self.report.map(|report| report.count))
    }

    /// Whether there is anything to say of it.
    pub fn is_known(&self) -> bool {
        self.unique().is_some() || self.requests() > 0
    }

    /// Requests of this outcome.
    pub fn requests_of(&self, outcome: &str) -> u64 {
        let mut by_outcome = OUTCOMES.iter().zip(self.requests);
        by_outcome
            .find(|(name, _)| **name == outcome)
            .map_or(0, |(_, requests)| requests)
    }

    /// All requests: as counted now, or as reported once the statistics have expired.
    pub fn requests(&self) -> u64 {
        let reported = self.report.map_or(0, |report| report.requests);
        self.requests.iter().sum::<u64>().max(reported)
    }

    /// Of requests whose id was recorded, the share of those whose id was there already, from 0 to 1; `None` without any.
    pub fn duplicates(&self) -> Option<f64> {
        let counted = [stats::NEW, stats::DUPLICATE].map(|outcome| self.requests_of(outcome));
        let [new, duplicates] = match (counted, self.report) {
            ([0, 0], Some(report)) => [report.requests.saturating_sub(report.duplicates), report.duplicates],
            (counted, _) => counted,
        };
        (new + duplicates > 0).then(|| duplicates as f64 / (new + duplicates) as f64)
    }
}

/// Looks once a second.
pub struct Overview {
    config: WindowsConfig,
    store: Store,
    health: Arc<Health>,
    metrics: Metrics,
    windows: WindowMetrics,
    seen: watch::Sender<Seen>,
    /// The first window not known to be reported; `None` if Redis has not answered yet.
    next: Option<Window>,
}

impl Overview {
    /// An overview, and where to see it.
    pub fn new(
        config: WindowsConfig,
        store: Store,
        health: Arc<Health>,
        metrics: Metrics,
    ) -> (Self, watch::Receiver<Seen>) {
        let (seen, receiver) = watch::channel(Seen {
            dependencies: health.states(),
            ..Seen::default()
        });
        let overview = Self {
            next: None,
            config,
            store,
            health,
            windows: metrics.windows(None),
            metrics,
            seen,
        };
        (overview, receiver)
    }

    /// Runs until a stop is asked for.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            self.look().await;
            stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await;
        }
    }

    async fn look(&mut self) {
        let mut seen = self.seen.borrow().clone();
        self.look_at_spools(&mut seen).await;
        match self.read(seen.clock.is_some()).await {
            Ok(read) => {
                if seen.clock.is_some() && self.windows.lease_held.get() == 1 {
                    count(&self.windows, &seen.windows, &read.windows);
                }
                seen = Seen {
                    spools: seen.spools,
                    // None of a time to come, by a clock that was set back.
                    newest_with_ids: (seen.newest_with_ids)
                        .filter(|newest| Some(*newest) <= read.windows.last().map(|current| current.window))
                        .max(newest_with_ids(&read.windows)),
                    ..read
                };
            }
            // Said by its connection, or by whoever needs the answer.
            Err(error) => tracing::debug!("cannot look at what is going on: {error}"),
        }
        seen.dependencies = self.health.states();
        let next = seen.clock.zip(self.next);
        seen.overdue_s = next.map_or(0, |(clock, next)| {
            clock.now_ms().saturating_sub(self.config.due_ms(next)) / 1000
        });
        let is_overdue = seen.overdue_s >= OVERDUE.as_secs();
        self.health.set_overdue(self.next.filter(|_| is_overdue));
        self.tell(&seen);
        self.seen.send_replace(seen);
    }

    /// `again`: whether it is not the first time.
    async fn read(&mut self, again: bool) -> RedisResult<Seen> {
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
            futures::try_join!(first.run::<Reply>(&pipe), SeenWindow::read(&self.store, &windows))?;
        self.follow(&read, again);
        let now_s = clock.now_ms() / 1000;
        let oldest_s = oldest.ids.first().and_then(|entry| entered_ms(&entry.id));
        Ok(Seen {
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

    /// Windows are reported in order: the one after the newest report is the next. What was due before this process began is
    /// so still.
    fn follow(&mut self, read: &[SeenWindow], again: bool) {
        if let Some(newest) = read.iter().rev().find(|seen| seen.report.is_some()) {
            let next = Some(newest.window.next());
            self.next = if again { self.next.max(next) } else { next };
        } else if self.next.is_none() {
            self.next = read.last().map(|current| current.window);
        }
    }

    /// Looks at what was told of spools. By itself, since this needs the first Redis only.
    async fn look_at_spools(&self, seen: &mut Seen) {
        let mut pipe = redis::pipe();
        pipe.hgetall(self.store.keys.spools());
        let Ok((read,)) = self.store.redis().run::<(BTreeMap<String, String>,)>(&pipe).await else {
            return;
        };
        // What cannot be read is what was counted, or was written by another version and goes with its key.
        let now: Spools = (read.iter())
            .filter_map(|(name, state)| Some((name.clone(), state.parse().ok()?)))
            .collect();
        if self.windows.lease_held.get() == 1 {
            let is_counted = self.count_drained(&read, &now).await;
            if let Some(before) = &seen.spools
                && is_counted
            {
                let now_s = seen.clock.map_or(0, |clock| clock.now_ms() / 1000);
                self.forget(before, &now, now_s).await;
            }
        }
        seen.spools = Some(now);
    }

    /// Adds the ids drained since they were last counted, by whichever replica: how many those were is kept beside the spool's
    /// state, so that what is drained while nobody leads is counted by who leads next.
    ///
    /// Says whether that could be kept: a full Redis refuses it.
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
            // The next look does, unless it was done and only not answered.
            Err(error) => {
                tracing::debug!("cannot count what was drained: {error}");
                false
            }
        }
    }

    /// Forgets spools that were empty at the last look already, and those that nothing was told of for long. By the replica that leads, which has
    /// counted them.
    async fn forget(&self, before: &Spools, now: &Spools, now_s: u64) {
        let mut pipe = redis::pipe();
        for (name, state) in now {
            let is_empty = state.depth == 0 && before.get(name) == Some(state);
            if is_empty || state.told_s + SPOOL_STATE_SECONDS < now_s {
                pipe.hdel(self.store.keys.spools(), &[name, &spool_counted(name)]);
            }
        }
        if !pipe.is_empty()
            && let Err(error) = self.store.redis().run::<Vec<u64>>(&pipe).await
        {
            // The next look does.
            tracing::debug!("cannot forget spools: {error}");
        }
    }

    fn tell(&self, seen: &Seen) {
        let metrics = &self.metrics;
        for (name, error) in &seen.dependencies {
            metrics.dependency(name, error.is_none());
        }
        self.windows.window_overdue.set(gauge(seen.overdue_s));
        metrics.spool_depth.set(gauge(seen.spooled()));
        metrics.silent.set(gauge(seen.silent_s()));
        if seen.clock.is_none() {
            return;
        }
        let mut newest = seen.windows.iter().rev().map(|seen| seen.unique().unwrap_or_default());
        self.windows.unique_ids("current", newest.next().unwrap_or_default());
        self.windows.unique_ids("last", newest.next().unwrap_or_default());
        metrics.callback_jobs("stream", seen.jobs.stream);
        metrics.callback_jobs("retry", seen.jobs.retry);
        metrics.callback_jobs("dead", seen.jobs.dead);
        metrics.oldest_job_age.set(gauge(seen.jobs.oldest_s));
    }
}

/// Adds the requests that are new since the last look, so that nothing is counted twice when another replica takes over.
pub fn count(metrics: &WindowMetrics, before: &[SeenWindow], now: &[SeenWindow]) {
    let before: BTreeMap<Window, [u64; OUTCOMES.len()]> =
        before.iter().map(|seen| (seen.window, seen.requests)).collect();
    for seen in now {
        let counted = before.get(&seen.window).copied().unwrap_or_default();
        for ((outcome, now), counted) in OUTCOMES.iter().zip(seen.requests).zip(counted) {
            // Fewer than before if Redis lost its data.
            metrics.requests(outcome, now.saturating_sub(counted));
        }
    }
}

fn newest_with_ids(windows: &[SeenWindow]) -> Option<Window> {
    let mut newest = windows.iter().rev();
    let with_ids = newest.find(|seen| seen.unique().is_some_and(|ids| ids > 0) || seen.requests() > 0);
    with_ids.map(|seen| seen.window)
}

/// The windows of the last hour, the current one included, but not fewer or more than can be shown.
pub fn latest(length: WindowLength, now_ms: u64) -> Vec<Window> {
    let windows = (3600 / length.seconds()).clamp(FEWEST, MOST);
    let newest = std::iter::successors(Some(length.window_at_ms(now_ms)), |window| window.previous());
    let mut windows: Vec<Window> = newest.take(usize::try_from(windows).unwrap_or(usize::MAX)).collect();
    windows.reverse();
    windows
}

/// When an entry of a stream was added, in Unix milliseconds.
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
