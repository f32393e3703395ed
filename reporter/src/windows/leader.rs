//! The leader's loop: it counts what is due or late, publishes it, and records that it has.

use std::sync::Arc;
use std::time::Duration;

use redis::RedisResult;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};
use verve_protocol::{CounterName, Partitions, Window, WindowRecord};

use super::WindowsConfig;
use super::ended::Ended;
use super::ledger::{Change, Ledger, News, Schedule, Step};
use super::ports::{BATCH, Books, Held as _, Swept};
use super::sweeps::{Last, Pace, Sweeps};
use crate::backoff::Retry;
use crate::clock::{RedisClock, millis};
use crate::health::Health;
use crate::kafka::{Begun, Publish, Unpublished};
use crate::metrics::WindowMetrics;

/// How often a reported window is counted again while it is watched for late ids.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// How often the ids of windows that are due or watched are kept from expiring: far more often than they would.
const KEEP_EVERY: Duration = Duration::from_secs(3600);
/// From when on Redis' clock was set back, rather than read a little earlier.
const SET_BACK: Duration = Duration::from_secs(1);

/// Leads: with the lease, on books and with a session of Kafka.
pub struct Leader<B> {
    pub config: WindowsConfig,
    pub books: Arc<B>,
    pub health: Arc<Health>,
    pub metrics: WindowMetrics,
    /// Whose windows these are, if it has a name.
    pub counter: Option<CounterName>,
    /// How many are counted.
    pub partitions: Partitions,
    pub pace: Pace,
}

/// What a leader remembers from one turn to the next, beside its ledger.
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

/// A search under way, which answers what it has found, and how long that took.
type Sweeping = AbortOnDropHandle<(Swept, Duration)>;

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

impl<B: Books> Leader<B> {
    /// The name of the counter, if it has one.
    pub fn counter(&self) -> Option<&str> {
        self.counter.as_ref().map(CounterName::as_str)
    }

    /// Reports windows for as long as it can. Answers why it does no more.
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

    /// Reports windows until a stop is asked for.
    async fn report<S: Publish>(
        &self,
        lease: &B::Lease,
        session: S,
        known: &mut Option<Ledger>,
        stop: &CancellationToken,
    ) -> Result<(), Ended> {
        let clock = self.books.clock().await?;
        let ledger = self.resume(lease, known.as_ref(), clock.now_ms()).await?;
        let ledger = known.insert(ledger);
        let mut leading = Leading::new(session, clock);
        while ledger.owes_recording() || !stop.is_cancelled() {
            self.turn(lease, ledger, &mut leading, stop).await?;
        }
        Ok(())
    }

    /// Does what is to be done next.
    pub async fn turn<S: Publish>(
        &self,
        lease: &B::Lease,
        ledger: &mut Ledger,
        leading: &mut Leading<S>,
        stop: &CancellationToken,
    ) -> Result<(), Ended> {
        // Whoever was paused must not do what another one has done better.
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
            // What it finds was past by a clock that was wrong.
            leading.sweeping = None;
            *ledger = self.resume(lease, Some(&*ledger), clock.now_ms()).await?;
        }
        if leading.kept.is_over(KEEP_EVERY) {
            self.books.keep(ledger, clock.now_ms()).await?;
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
                self.books.remove(&windows).await?;
                ledger.removed(&windows);
            }
            Step::Count(windows) => {
                // Before anything is written down that could not be published.
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
                // Beside the reporting, since it may take long.
                if let Some(done) = leading.sweeping.take_if(|sweeping| sweeping.is_finished()) {
                    let (swept, took) = done.await.unwrap_or_else(|error| {
                        tracing::error!("the search for ids that came too late failed: {error}");
                        Default::default()
                    });
                    leading.sweeps.done(took, &self.pace);
                    self.swept(lease, ledger, &mut leading.sweeps, swept).await?;
                } else if leading.sweeping.is_none() && leading.sweeps.is_due(self.config.periods.sweep, &self.pace) {
                    leading.sweeping = Some(self.sweep(ledger.clone(), clock.now_ms()));
                }
                self.wait(ledger, clock, stop).await;
            }
        }
        Ok(())
    }

    /// Redis' clock. While Kafka has what Redis does not know of, one that cannot be read just goes on, so that this is recorded.
    async fn clock(&self, ledger: &Ledger, before: RedisClock) -> RedisResult<RedisClock> {
        match self.books.clock().await {
            Err(_) if ledger.owes_recording() => Ok(before),
            read => read,
        }
    }

    /// What there is to do, by what is in Redis and by what is known.
    pub async fn resume(&self, lease: &B::Lease, known: Option<&Ledger>, now_ms: u64) -> Result<Ledger, Ended> {
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
    async fn publish<S: Publish>(
        &self,
        lease: &B::Lease,
        session: &mut S,
        records: &[WindowRecord],
    ) -> Result<bool, Ended> {
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
        lease: &B::Lease,
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
                    self.pause(&mut retry, stop).await;
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
        lease: &B::Lease,
        ledger: &mut Ledger,
        windows: &[Window],
        clock: RedisClock,
    ) -> Result<(), Ended> {
        let now = clock.now_ms();
        let counts = self.books.counts(windows).await?;
        let plan = ledger.plan(windows.iter().copied().zip(counts), now);
        self.prepare(lease, ledger, &plan.news).await?;
        for windows in plan.over.chunks(BATCH) {
            let counts = self.books.close(windows).await?;
            let plan = ledger.plan_closed(windows.iter().copied().zip(counts));
            self.prepare(lease, ledger, &plan.news).await?;
            self.books.finish(lease, &plan.finals).await?;
            plan.finals.iter().for_each(|(window, _)| ledger.finished(*window));
        }
        Ok(())
    }

    /// Writes down what is to be published.
    async fn prepare(&self, lease: &B::Lease, ledger: &mut Ledger, news: &[News]) -> Result<(), Ended> {
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
    pub async fn swept(
        &self,
        lease: &B::Lease,
        ledger: &mut Ledger,
        sweeps: &mut Sweeps,
        swept: Swept,
    ) -> Result<(), Ended> {
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
    pub fn tell_uncounted(&self, partitions: Option<u16>) {
        let about = match self.counter() {
            Some(counter) => format!("partitions of {counter}"),
            None => "partitions".to_owned(),
        };
        self.metrics.uncounted_partitions.set(i64::from(partitions.is_some()));
        let counted = self.partitions.count();
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
            stop.run_until_cancelled(self.books.sleep(wait.min(WATCH_EVERY))).await;
        }
    }

    /// The pause before what failed is tried again.
    async fn pause(&self, retry: &mut Retry, stop: &CancellationToken) {
        stop.run_until_cancelled(self.books.sleep(retry.pause())).await;
    }
}
