//! Reporting windows: one replica holds the lease, counts what is due or late, publishes it, and records that it has.
//!
//! Each news goes the way of `ledger`: written down as pending, published, acknowledged, recorded. What a crash leaves behind:
//! - before it is written down: nothing; the window is counted again
//! - before the recording: the next leader publishes what was written down, exactly as it is, whether Kafka has it or not
//! - after the recording: nothing is left to do. The fixed callback's job is queued by the same script that records

mod books;
mod ended;
mod lease;
mod ledger;
#[cfg(test)]
mod model;
mod pending;
mod sweeps;

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::RedisResult;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};
use verve_protocol::{CounterName, Endpoint, Method, Window, WindowLength, WindowRecord};

use crate::backoff::Retry;
use crate::clock::{RedisClock, millis};
use crate::health::Health;
use crate::kafka::{Begun, Publisher, Session, Unpublished};
use crate::metrics::{Metrics, WindowMetrics};
use crate::periods::Periods;
use crate::store::Store;
use books::{BATCH, Books, Swept};
use ended::Ended;
use lease::Lease;
pub use ledger::KEPT;
use ledger::{Change, Ledger, News, Schedule, Step};
pub use sweeps::Pace;
use sweeps::Sweeps;

/// How often a reported window is counted again while it is watched for late ids.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Who has led for so long has not failed at once.
const A_WHILE: Duration = Duration::from_secs(10);
/// How often the ids of windows that are due or watched are kept from expiring: far more often than they would.
const KEEP_EVERY: Duration = Duration::from_secs(3600);
/// From when on Redis' clock was set back, rather than read a little earlier.
const SET_BACK: Duration = Duration::from_secs(1);
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
pub struct Reporter {
    config: WindowsConfig,
    store: Store,
    books: Arc<Books>,
    health: Arc<Health>,
    publisher: Publisher,
    metrics: WindowMetrics,
    replica: String,
    pace: Pace,
}

/// When something was last done, to do it every so often.
#[derive(Default)]
struct Last(Option<Instant>);

impl Last {
    fn is_over(&self, every: Duration) -> bool {
        self.0.is_none_or(|last| last.elapsed() >= every)
    }

    fn is_now(&mut self) {
        self.0 = Some(Instant::now());
    }
}

/// Of one report: most of the time of one window.
fn span_of(counter: Option<&str>, records: &[WindowRecord]) -> Span {
    let first = records.first();
    tracing::info_span!(
        "window report",
        otel.kind = "producer",
        otel.status_code = Empty,
        counter,
        windows = records.len(),
        window = first.map(|record| record.window.to_string()),
        unique = first.map(|record| record.count),
        revision = first.map(|record| record.revision),
    )
}

impl Reporter {
    /// A reporter that calls itself `replica` in the lease.
    pub fn new(
        config: WindowsConfig,
        store: Store,
        health: Arc<Health>,
        publisher: Publisher,
        metrics: &Metrics,
        replica: String,
        pace: Pace,
    ) -> Self {
        Self {
            metrics: metrics.windows(store.keys.counter()),
            books: Arc::new(Books::new(config.clone(), store.clone())),
            config,
            store,
            health,
            publisher,
            replica,
            pace,
        }
    }

    /// The name of the counter, if it has one.
    fn counter(&self) -> Option<&str> {
        self.store.keys.counter().map(CounterName::as_str)
    }

    /// Runs until a stop is asked for.
    pub async fn run(self, stop: CancellationToken) {
        let mut ledger = None;
        let mut retry = Retry::default();
        // Whether it goes on after an error, so that there is nothing new to say.
        let mut goes_on = false;
        while let Some(lease) = stop
            .run_until_cancelled(Lease::acquire(
                &self.store,
                &self.health,
                self.config.length,
                &self.replica,
                self.config.periods,
            ))
            .await
        {
            if !std::mem::take(&mut goes_on) || lease.was_waited_for() {
                tracing::info!(
                    counter = self.counter(),
                    replica = self.replica,
                    "holding the lease: reporting windows"
                );
            }
            self.metrics.lease_held.set(1);
            let begin = Instant::now();
            // A stop lets the step under way finish, so that what Kafka has is recorded.
            let ended = tokio::select! {
                ended = self.lead(&lease, &mut ledger, &stop) => ended,
                () = lease.lost() => Ended::LeaseLost,
            };
            self.metrics.lease_held.set(0);
            // Who leads from now on finds out.
            self.tell_uncounted(None);
            if begin.elapsed() > A_WHILE {
                retry.worked();
            }
            match ended {
                Ended::Stopped => {}
                Ended::LeaseLost | Ended::Fenced => {
                    tracing::warn!(counter = self.counter(), replica = self.replica, "{ended}");
                }
                // Said by `health`.
                Ended::Failed(_) => {
                    tracing::debug!("{ended}");
                    goes_on = true;
                }
            }
            lease.release().await;
            pause(&mut retry, &stop).await;
        }
    }

    /// Reports windows for as long as it can. Answers why it does no more.
    async fn lead(&self, lease: &Lease, known: &mut Option<Ledger>, stop: &CancellationToken) -> Ended {
        match self.report(lease, known, stop).await {
            Ok(()) => Ended::Stopped,
            Err(ended) => ended,
        }
    }

    /// Reports windows until a stop is asked for.
    async fn report(&self, lease: &Lease, known: &mut Option<Ledger>, stop: &CancellationToken) -> Result<(), Ended> {
        let mut clock = self.store.clock().await?;
        let ledger = self.resume(lease, known.as_ref(), clock.now_ms()).await?;
        let ledger = known.insert(ledger);
        let mut session = self.publisher.session();
        let (mut watched, mut kept) = (Last::default(), Last::default());
        let (mut retry, mut sweeps) = (Retry::default(), Sweeps::default());
        let mut sweeping: Option<Sweeping> = None;
        while ledger.owes_recording() || !stop.is_cancelled() {
            // Whoever was paused must not do what another one has done better.
            if !lease.is_held() {
                return Err(Ended::LeaseLost);
            }
            let before_ms = clock.now_ms();
            clock = self.clock(ledger, clock).await?;
            if clock.now_ms() + millis(SET_BACK) <= before_ms {
                tracing::warn!(
                    counter = self.counter(),
                    by_ms = before_ms - clock.now_ms(),
                    "Redis' clock was set back"
                );
                // What it finds was past by a clock that was wrong.
                sweeping = None;
                *ledger = self.resume(lease, Some(&*ledger), clock.now_ms()).await?;
            }
            if kept.is_over(KEEP_EVERY) {
                self.books.keep(ledger, clock.now_ms()).await?;
                kept.is_now();
            }
            let watch = watched.is_over(WATCH_EVERY);
            match ledger.step(clock.now_ms(), BATCH, watch) {
                Step::Record(changes) => self.record(lease, ledger, &changes, stop).await?,
                Step::Publish(records) => {
                    let span = span_of(self.counter(), &records);
                    let published = self.publish(lease, &mut session, &records);
                    let published = published.instrument(span.clone()).await;
                    if !matches!(published, Ok(true)) {
                        span.record("otel.status_code", "ERROR");
                    }
                    if published? {
                        retry.worked();
                        ledger.acknowledged(clock.now_ms());
                    } else {
                        pause(&mut retry, stop).await;
                    }
                }
                Step::Remove(windows) => {
                    self.books.remove(&windows).await?;
                    ledger.removed(&windows);
                }
                Step::Count(windows) => {
                    // Before anything is written down that could not be published.
                    match stop.run_until_cancelled(session.begin()).await {
                        None => continue,
                        Some(Ok(_)) => {}
                        Some(Err(Unpublished::Fenced)) => return Err(Ended::Fenced),
                        Some(Err(Unpublished::Away)) => {
                            pause(&mut retry, stop).await;
                            continue;
                        }
                    }
                    self.count(lease, ledger, &windows, clock).await?;
                    if watch {
                        watched.is_now();
                    }
                    // Beside the reporting, since it may take long.
                    if let Some(done) = sweeping.take_if(|sweeping| sweeping.is_finished()) {
                        self.swept(lease, ledger, &mut sweeps, done).await?;
                    } else if sweeping.is_none() && sweeps.is_due(self.config.periods.sweep, &self.pace) {
                        sweeping = Some(self.sweep(ledger.clone(), clock.now_ms()));
                    }
                    self.wait(ledger, clock, stop).await;
                }
            }
        }
        Ok(())
    }

    /// Redis' clock. While Kafka has what Redis does not know of, one that cannot be read just goes on, so that this is recorded.
    async fn clock(&self, ledger: &Ledger, before: RedisClock) -> RedisResult<RedisClock> {
        match self.store.clock().await {
            Err(_) if ledger.owes_recording() => Ok(before),
            read => read,
        }
    }

    /// What there is to do, by what is in Redis and by what is known.
    async fn resume(&self, lease: &Lease, known: Option<&Ledger>, now_ms: u64) -> Result<Ledger, Ended> {
        let schedule = Schedule {
            grace: self.config.grace,
            late: self.config.late,
        };
        let mut stored = self.books.load(known, now_ms).await?;
        let early = stored.reopen(now_ms);
        if let [first, ..] = early.as_slice() {
            tracing::error!(
                counter = self.counter(), %first, windows = early.len(),
                "windows are final that have not ended: Redis' clock was ahead; they are counted again"
            );
            self.books.reopen(lease, &stored, &early).await?;
        }
        let (ledger, lost) = Ledger::resume(self.config.length, schedule, stored, known, now_ms);
        if let Some(lost) = lost {
            self.metrics.windows_lost.inc_by(lost.windows);
            tracing::error!(
                counter = self.counter(),
                first = %lost.first, last = %lost.last, windows = lost.windows,
                "windows not reported: no reporter ran for so long that their ids have expired"
            );
        }
        Ok(ledger)
    }

    /// Publishes what was written down. Says whether Kafka has it for sure.
    async fn publish(&self, lease: &Lease, session: &mut Session, records: &[WindowRecord]) -> Result<bool, Ended> {
        let begun = session.begin().await;
        if begun == Ok(Begun::Now) {
            // It fences all others, the right one too if the lease is another's meanwhile.
            self.books.prepare(lease, records).await?;
        }
        let published = match begun {
            Ok(_) => session.publish(records).await,
            Err(error) => Err(error),
        };
        match published {
            Ok(()) => Ok(true),
            Err(Unpublished::Away) => Ok(false),
            Err(Unpublished::Fenced) => Err(Ended::Fenced),
        }
    }

    /// Records what Kafka has, as soon as Redis takes it: published again it would be the same record once more.
    async fn record(
        &self,
        lease: &Lease,
        ledger: &mut Ledger,
        changes: &[Change],
        stop: &CancellationToken,
    ) -> Result<(), Ended> {
        let mut told = false;
        let mut retry = Retry::default();
        loop {
            match self.books.record(lease, changes).await {
                Ok(()) => break,
                Err(Ended::Failed(error)) if !stop.is_cancelled() && lease.is_held() => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::error!("Kafka has records that Redis does not take note of: {error}; trying again");
                    }
                    pause(&mut retry, stop).await;
                }
                Err(ended) => return Err(ended),
            }
        }
        ledger.recorded();
        for Change { record, report } in changes {
            let (counter, told) = match record.revision {
                _ if record.late > 0 => (
                    &self.metrics.window_revisions,
                    "window reported again, with its late ids",
                ),
                0 => {
                    let lag_ms = report.time.saturating_sub(self.config.due_ms(record.window));
                    self.metrics
                        .window_lag
                        .observe(Duration::from_millis(lag_ms).as_secs_f64());
                    (&self.metrics.windows_reported, "window reported")
                }
                _ => (&self.metrics.window_revisions, "window corrected"),
            };
            counter.inc();
            tracing::info!(
                counter = self.counter(),
                window = %record.window,
                unique = record.count,
                revision = record.revision,
                requests = record.requests,
                duplicates = record.duplicates,
                late = (record.late > 0).then_some(record.late),
                "{told}",
            );
        }
        Ok(())
    }

    /// Counts windows, writes down what is news, and makes final what is over.
    async fn count(
        &self,
        lease: &Lease,
        ledger: &mut Ledger,
        windows: &[Window],
        clock: RedisClock,
    ) -> Result<(), Ended> {
        let now = clock.now_ms();
        let counts = self.store.counts(windows).await?;
        let plan = ledger.plan(windows.iter().copied().zip(counts), now);
        self.prepare(lease, ledger, &plan.news).await?;
        for windows in plan.over.chunks(BATCH) {
            let counts = self.store.close(windows).await?;
            let plan = ledger.plan_closed(windows.iter().copied().zip(counts));
            self.prepare(lease, ledger, &plan.news).await?;
            self.books.finish(lease, &plan.finals).await?;
            plan.finals.iter().for_each(|(window, _)| ledger.finished(*window));
        }
        Ok(())
    }

    /// Writes down what is to be published.
    async fn prepare(&self, lease: &Lease, ledger: &mut Ledger, news: &[News]) -> Result<(), Ended> {
        let records = self.books.records(news).await?;
        self.books.prepare(lease, &records).await?;
        ledger.prepared(records);
        Ok(())
    }

    /// Begins to look for what came too late, and for what need not be kept.
    fn sweep(&self, ledger: Ledger, now_ms: u64) -> Sweeping {
        let books = self.books.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let begun = Instant::now();
            let swept = books.sweep(&ledger, now_ms).await;
            (swept, begun.elapsed())
        }))
    }

    /// Says what a search has found, and writes down what is to be published of it. What fails there can wait, except for that.
    async fn swept(
        &self,
        lease: &Lease,
        ledger: &mut Ledger,
        sweeps: &mut Sweeps,
        done: Sweeping,
    ) -> Result<(), Ended> {
        let (swept, took) = done.await.unwrap_or_else(|error| {
            tracing::error!("the search for ids that came too late failed: {error}");
            Default::default()
        });
        sweeps.done(took, &self.pace);
        for (window, ids) in swept.late {
            self.metrics.late_ids.inc_by(ids);
            tracing::warn!(counter = self.counter(), %window, ids, "ids came after their window was final: kept for a day, and told by a record with their number");
        }
        let ahead = sweeps.untold(swept.ahead);
        if let [window, ..] = ahead.as_slice() {
            self.metrics.windows_ahead.inc_by(ahead.len() as u64);
            tracing::warn!(counter = self.counter(), %window, windows = ahead.len(), "a window that has not begun has ids: the clock of an edge host is ahead");
        }
        // A search that failed tells nothing of that.
        if let Some(most_partitions) = swept.most_partitions {
            self.tell_uncounted(most_partitions);
        }
        ledger.add_strays(&swept.unreported);
        // Meanwhile somebody may have begun with one of them.
        let news: Vec<News> = swept
            .news
            .into_iter()
            .filter(|news| ledger.is_past(news.window))
            .collect();
        self.prepare(lease, ledger, &news).await
    }

    /// Says that hosts have so many partitions, which are not all counted, or that none has.
    fn tell_uncounted(&self, partitions: Option<u16>) {
        let about = match self.counter() {
            Some(counter) => format!("partitions of {counter}"),
            None => "partitions".to_owned(),
        };
        self.metrics.uncounted_partitions.set(i64::from(partitions.is_some()));
        let counted = self.store.partitions().count();
        let error = partitions.map(|partitions| {
            format!(
                "an edge host has {partitions}, and --partitions is {counted}: ids beyond those are not counted; give all of them the same number"
            )
        });
        self.health.set_problem(&about, error);
    }

    /// Waits until something may be due, unless something is already.
    async fn wait(&self, ledger: &Ledger, clock: RedisClock, stop: &CancellationToken) {
        let now = clock.now_ms();
        if matches!(ledger.step(now, 1, false), Step::Count(due) if due.is_empty()) {
            let wait = Duration::from_millis(ledger.next_due_ms().saturating_sub(now));
            stop.run_until_cancelled(tokio::time::sleep(wait.min(WATCH_EVERY)))
                .await;
        }
    }
}

/// A search under way, which answers what it has found, and how long that took.
type Sweeping = AbortOnDropHandle<(Swept, Duration)>;

/// The pause before what failed is tried again.
async fn pause(retry: &mut Retry, stop: &CancellationToken) {
    stop.run_until_cancelled(tokio::time::sleep(retry.pause())).await;
}
