//! The leader's loop: counts due and late windows, publishes and records them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::{RedisError, RedisResult};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};
use verve_protocol::{CounterName, Partitions, Report, Window, WindowRecord};

use super::ended::Ended;
use super::ledger::{self, Ledger, PendingRevision, RecordedRevision, Schedule, Step};
use super::ports::{BATCH, Held as _, ReportStore, Swept};
use super::sweeps::{Last, SweepThrottle, Sweeps};
use super::{A_WHILE, WindowsConfig};
use crate::backoff::Retry;
use crate::clock::{RedisClock, millis};
use crate::health::Health;
use crate::kafka::{Begun, CounterRecord, Publish, Unpublished};
use crate::metrics::WindowMetrics;

/// How often a reported window is counted again while it is watched for late ids.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// How often the expiry of the ids of due and watched windows is renewed.
/// This is far more often than they would expire.
const KEEP_EVERY: Duration = Duration::from_secs(3600);
/// How far Redis' clock must go back to count as set back.
/// A smaller difference only means that it was read a little earlier.
const SET_BACK: Duration = Duration::from_secs(1);

/// The leader: reports windows with a lease, a report store and a Kafka session.
pub struct Leader<B> {
    pub config: WindowsConfig,
    pub report_store: Arc<B>,
    pub health: Arc<Health>,
    pub metrics: WindowMetrics,
    /// The name of the counter, if it has one.
    pub counter: Option<CounterName>,
    /// How many partitions are counted.
    pub partitions: Partitions,
    pub throttle: SweepThrottle,
    /// When the counter was last used, if it is not reported while it is idle.
    pub used: Option<Used>,
}

/// When a named counter was last registered, in Unix milliseconds.
#[derive(Clone, Debug, Default)]
pub struct Used(Arc<AtomicU64>);

impl Used {
    /// Returns the time.
    pub fn at_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Notes the time.
    pub fn is_at_ms(&self, at_ms: u64) {
        self.0.store(at_ms, Ordering::Relaxed);
    }
}

/// What a leader keeps between iterations of its loop, besides its ledger.
pub struct Leading<S> {
    pub session: S,
    clock: RedisClock,
    watched: Last,
    kept: Last,
    retry: Retry,
    sweeps: Sweeps,
    sweeping: Option<Sweeping>,
}

impl<S> Leading<S> {
    pub fn new(session: S, clock: RedisClock) -> Self {
        Self {
            session,
            clock,
            watched: Last::default(),
            kept: Last::default(),
            retry: Retry::default(),
            sweeps: Sweeps::default(),
            sweeping: None,
        }
    }
}

/// A running search, which returns what it found and how long it took.
type Sweeping = AbortOnDropHandle<(Swept, Duration)>;

/// Creates the trace span of one report, which most often has one window.
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

impl<B: ReportStore> Leader<B> {
    /// Returns the name of the counter, if it has one.
    pub fn counter(&self) -> Option<&str> {
        self.counter.as_ref().map(CounterName::as_str)
    }

    /// Reports windows for as long as it can, and returns why it stopped.
    pub async fn lead<S: Publish>(
        &self,
        lease: &B::Lease,
        session: S,
        known: &mut Option<Ledger>,
        stop: &CancellationToken,
    ) -> Ended {
        match self.report(lease, session, known, stop).await {
            Ok(()) => Ended::Stopped,
            Err(ended) => ended,
        }
    }

    /// Reports windows until a stop is requested.
    async fn report<S: Publish>(
        &self,
        lease: &B::Lease,
        session: S,
        known: &mut Option<Ledger>,
        stop: &CancellationToken,
    ) -> Result<(), Ended> {
        let clock = self.report_store.clock().await?;
        let ledger = self.resume(lease, known.as_ref(), clock.now_ms()).await?;
        let ledger = known.insert(ledger);
        let mut leading = Leading::new(session, clock);
        let begin = Instant::now();
        while ledger.owes_recording() || !stop.is_cancelled() {
            self.turn(lease, ledger, &mut leading, stop).await?;
            // A failure may be that of each second turn.
            if begin.elapsed() > A_WHILE {
                self.set_failed(None);
            }
        }
        Ok(())
    }

    /// Runs one iteration of the loop: the next step of the ledger.
    pub async fn turn<S: Publish>(
        &self,
        lease: &B::Lease,
        ledger: &mut Ledger,
        leading: &mut Leading<S>,
        stop: &CancellationToken,
    ) -> Result<(), Ended> {
        // After a pause, another leader may already have done the next step.
        if !lease.is_held() {
            return Err(Ended::LeaseLost);
        }
        let before_ms = leading.clock.now_ms();
        let clock = self.clock(ledger, leading.clock).await?;
        leading.clock = clock;
        if clock.now_ms() + millis(SET_BACK) <= before_ms {
            tracing::warn!(
                counter = self.counter(),
                by_ms = before_ms - clock.now_ms(),
                "Redis' clock was set back"
            );
            // The running search used the wrong clock to decide which windows are past.
            leading.sweeping = None;
            *ledger = self.resume(lease, Some(&*ledger), clock.now_ms()).await?;
        }
        let idle_after = self.used.as_ref().map(|used| self.config.idle_after(used.at_ms()));
        if ledger.is_awoken(idle_after) {
            *ledger = self.resume(lease, Some(&*ledger), clock.now_ms()).await?;
        }
        ledger.is_idle_after(idle_after);
        if leading.kept.is_over(KEEP_EVERY) {
            self.report_store.keep(ledger, clock.now_ms()).await?;
            leading.kept.is_now();
        }
        let watch = leading.watched.is_over(WATCH_EVERY);
        match ledger.step(clock.now_ms(), BATCH, watch) {
            Step::Record(changes) => self.record(lease, ledger, &changes, stop).await?,
            Step::Publish(records) => {
                let span = span_of(self.counter(), &records);
                let published = self.publish(lease, &mut leading.session, &records);
                let published = published.instrument(span.clone()).await;
                if !matches!(published, Ok(true)) {
                    span.record("otel.status_code", "ERROR");
                }
                if published? {
                    leading.retry.worked();
                    ledger.acknowledged(clock.now_ms());
                } else {
                    self.pause(&mut leading.retry, stop).await;
                }
            }
            Step::Remove(windows) => {
                self.report_store.remove(&windows).await?;
                ledger.removed(&windows);
            }
            Step::Count(windows) => {
                // Begin first: nothing may become pending that cannot be published.
                match stop.run_until_cancelled(leading.session.begin()).await {
                    None => return Ok(()),
                    Some(Ok(_)) => {}
                    Some(Err(Unpublished::Fenced)) => return Err(Ended::Fenced),
                    Some(Err(Unpublished::Away)) => {
                        self.pause(&mut leading.retry, stop).await;
                        return Ok(());
                    }
                }
                self.count(lease, ledger, &windows, clock).await?;
                if watch {
                    leading.watched.is_now();
                }
                // The search runs concurrently with reporting, since it may take long.
                if let Some(done) = leading.sweeping.take_if(|sweeping| sweeping.is_finished()) {
                    let (swept, took) = done.await.unwrap_or_else(|error| {
                        tracing::error!("the search for ids that came too late failed: {error}");
                        Default::default()
                    });
                    leading.sweeps.done(took, &self.throttle);
                    let is_empty = swept.is_empty;
                    self.swept(lease, ledger, &mut leading.sweeps, swept).await?;
                    if let Some(used) = self.used.as_ref().filter(|_| is_empty && ledger.is_at_rest()) {
                        self.report_store
                            .retire(lease, used.at_ms(), ledger.next_window())
                            .await?;
                    }
                } else if leading.sweeping.is_none() && leading.sweeps.is_due(self.config.periods.sweep, &self.throttle)
                {
                    leading.sweeping = Some(self.sweep(ledger.clone(), clock.now_ms()));
                }
                self.wait(ledger, clock, stop).await;
            }
        }
        Ok(())
    }

    /// Sets or clears the problem that these windows cannot be reported.
    pub fn set_failed(&self, error: Option<&RedisError>) {
        let counter = self
            .counter()
            .map(|name| format!("counter {name}, "))
            .unwrap_or_default();
        let about = format!("{counter}windows of {} s", self.config.length);
        let error = error.map(|error| format!("they cannot be reported: {error}"));
        self.health.set_problem(&about, error);
    }

    /// Reads Redis' clock.
    /// If the read fails while Kafka has records that Redis does not know of, returns `before`,
    /// which runs on, so that they can be recorded.
    async fn clock(&self, ledger: &Ledger, before: RedisClock) -> RedisResult<RedisClock> {
        match self.report_store.clock().await {
            Err(_) if ledger.owes_recording() => Ok(before),
            read => read,
        }
    }

    /// Builds the ledger from the state in Redis and from what is known.
    pub async fn resume(&self, lease: &B::Lease, known: Option<&Ledger>, now_ms: u64) -> Result<Ledger, Ended> {
        let schedule = Schedule {
            grace: self.config.grace,
            late: self.config.late,
            remembered: match self.counter {
                None => ledger::REMEMBERED,
                Some(_) => ledger::REMEMBERED_OF_NAMED,
            },
        };
        let mut stored = self.report_store.load(known, now_ms).await?;
        let early = stored.reopen(now_ms);
        if let [first, ..] = early.as_slice() {
            tracing::error!(
                counter = self.counter(), %first, windows = early.len(),
                "windows were final before they ended: Redis' clock was ahead; they are counted again"
            );
            self.report_store.reopen(lease, &stored, &early).await?;
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

    /// Publishes pending records, and returns whether Kafka certainly has them.
    async fn publish<S: Publish>(
        &self,
        lease: &B::Lease,
        session: &mut S,
        records: &[WindowRecord],
    ) -> Result<bool, Ended> {
        let begun = session.begin().await;
        if begun == Ok(Begun::Now) {
            // The session fences all others. If the lease was lost meanwhile, it also fences the
            // rightful leader, so `prepare` checks the lease again.
            self.report_store.prepare(lease, records).await?;
        }
        let of_counter = |record: &WindowRecord| CounterRecord {
            counter: self.counter.clone(),
            record: *record,
        };
        let published = match begun {
            Ok(_) => {
                session
                    .publish(&records.iter().map(of_counter).collect::<Vec<_>>())
                    .await
            }
            Err(error) => Err(error),
        };
        match published {
            Ok(()) => Ok(true),
            Err(Unpublished::Away) => Ok(false),
            Err(Unpublished::Fenced) => Err(Ended::Fenced),
        }
    }

    /// Records in Redis what Kafka has, as soon as Redis accepts it.
    /// Otherwise the same record would be published once more.
    async fn record(
        &self,
        lease: &B::Lease,
        ledger: &mut Ledger,
        changes: &[RecordedRevision],
        stop: &CancellationToken,
    ) -> Result<(), Ended> {
        let mut is_logged = false;
        let mut retry = Retry::default();
        loop {
            match self.report_store.record(lease, changes).await {
                Ok(()) => break,
                Err(Ended::Failed(error)) if !stop.is_cancelled() && lease.is_held() => {
                    if !std::mem::replace(&mut is_logged, true) {
                        tracing::error!("Kafka has records that Redis has not recorded: {error}; trying again");
                    }
                    self.pause(&mut retry, stop).await;
                }
                Err(ended) => return Err(ended),
            }
        }
        ledger.recorded();
        for RecordedRevision { record, report } in changes {
            let (counter, message) = match record.revision {
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
                "{message}",
            );
        }
        Ok(())
    }

    /// Counts windows, stores pending revisions, and finishes windows that are over.
    async fn count(
        &self,
        lease: &B::Lease,
        ledger: &mut Ledger,
        windows: &[Window],
        clock: RedisClock,
    ) -> Result<(), Ended> {
        let now = clock.now_ms();
        let counts = self.report_store.counts(windows).await?;
        let plan = ledger.plan(windows.iter().copied().zip(counts), now);
        self.prepare(lease, ledger, &plan.revisions).await?;
        for finals in plan.finals.chunks(BATCH) {
            self.finish(lease, ledger, finals).await?;
        }
        for windows in plan.over.chunks(BATCH) {
            let counts = self.report_store.close(windows).await?;
            let plan = ledger.plan_closed(windows.iter().copied().zip(counts));
            self.prepare(lease, ledger, &plan.revisions).await?;
            self.finish(lease, ledger, &plan.finals).await?;
        }
        Ok(())
    }

    /// Makes windows final.
    async fn finish(&self, lease: &B::Lease, ledger: &mut Ledger, finals: &[(Window, Report)]) -> Result<(), Ended> {
        self.report_store.finish(lease, finals).await?;
        finals.iter().for_each(|(window, _)| ledger.finished(*window));
        Ok(())
    }

    /// Stores revisions as pending before they are published.
    async fn prepare(&self, lease: &B::Lease, ledger: &mut Ledger, revisions: &[PendingRevision]) -> Result<(), Ended> {
        let records = self.report_store.records(revisions).await?;
        self.report_store.prepare(lease, &records).await?;
        ledger.prepared(records);
        Ok(())
    }

    /// Starts a search for ids that came too late, and for reports to remove.
    fn sweep(&self, ledger: Ledger, now_ms: u64) -> Sweeping {
        let report_store = self.report_store.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let begun = Instant::now();
            let swept = report_store.sweep(&ledger, now_ms).await;
            (swept, begun.elapsed())
        }))
    }

    /// Logs what a search has found, and stores its revisions as pending.
    /// Failures of the search can wait, but not a failure to store these.
    pub async fn swept(
        &self,
        lease: &B::Lease,
        ledger: &mut Ledger,
        sweeps: &mut Sweeps,
        swept: Swept,
    ) -> Result<(), Ended> {
        for (window, ids) in swept.late {
            self.metrics.late_ids.inc_by(ids);
            tracing::warn!(counter = self.counter(), %window, ids, "ids arrived after their window was final: kept for a day, and published with their number");
        }
        let ahead = sweeps.unlogged(swept.ahead);
        if let [window, ..] = ahead.as_slice() {
            self.metrics.windows_ahead.inc_by(ahead.len() as u64);
            tracing::warn!(counter = self.counter(), %window, windows = ahead.len(), "a window that has not begun has ids: the clock of an edge host is ahead");
        }
        // A failed search does not know the number of partitions.
        if let Some(most_partitions) = swept.most_partitions {
            self.report_uncounted_partitions(most_partitions);
        }
        ledger.add_orphaned(&swept.unreported);
        // The reporting of one of them may have begun meanwhile.
        let revisions: Vec<PendingRevision> = swept
            .revisions
            .into_iter()
            .filter(|revision| ledger.is_past(revision.window))
            .collect();
        self.prepare(lease, ledger, &revisions).await
    }

    /// Reports whether hosts have more partitions than are counted.
    /// `partitions` is the number that they have, or `None` if none has more.
    pub fn report_uncounted_partitions(&self, partitions: Option<u16>) {
        let counter = self.counter().map(|counter| format!(" of {counter}"));
        let longer = self.config.longer();
        let longer = longer.map(|length| format!(" in windows of {length} s"));
        let about = ["partitions".to_owned()].into_iter().chain(counter).chain(longer);
        let about: String = about.collect();
        self.metrics.uncounted_partitions.set(i64::from(partitions.is_some()));
        let counted = self.partitions.count();
        let error = partitions.map(|partitions| {
            format!(
                "an edge host has {partitions}, and --partitions is {counted}: ids beyond those are not counted; give all of them the same number"
            )
        });
        self.health.set_problem(&about, error);
    }

    /// Waits until a window may be due, unless there is work already.
    async fn wait(&self, ledger: &Ledger, clock: RedisClock, stop: &CancellationToken) {
        let now = clock.now_ms();
        if matches!(ledger.step(now, 1, false), Step::Count(due) if due.is_empty()) {
            let due_ms = ledger.next_due_ms().unwrap_or(u64::MAX);
            let wait = Duration::from_millis(due_ms.saturating_sub(now));
            stop.run_until_cancelled(self.report_store.sleep(wait.min(WATCH_EVERY)))
                .await;
        }
    }

    /// Waits before a failed step is tried again.
    async fn pause(&self, retry: &mut Retry, stop: &CancellationToken) {
        stop.run_until_cancelled(self.report_store.sleep(retry.pause())).await;
    }
}
