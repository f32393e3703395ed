//! Callbacks: jobs from the queue in Redis, delivered by HTTP, retried or given up.

pub mod dead;
mod deliver;
mod hosts;
mod policy;
mod queue;
mod sign;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures::future;
use redis::{RedisError, RedisResult};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};
use verve_protocol::{CounterName, Report, Window, WindowLength};

use crate::backoff::{Backoff, Retry};
use crate::clock::millis;
use crate::condition::Condition;
use crate::metrics::Metrics;
use crate::periods::Periods;
use crate::store::Store;
use crate::windows::REPORTS_KEPT;
pub use deliver::{Call, Client, Failure};
use hosts::{Hosts, Permit};
pub use policy::Policy;
use queue::{Attempt, MAX_RETRY, Queue, Source, Verdict};
pub use sign::Signer;

/// The maximum number of deliveries in progress.
const CONCURRENCY: usize = 256;
/// The maximum number of jobs taken from the queue in one command.
const BATCH: usize = 64;
/// The maximum delay before another attempt that doubling can reach.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// The maximum delay that an endpoint can request.
const LONGEST_ASKED: Duration = Duration::from_secs(3600);
/// The interval of the checks for room, while the retry set is full.
const LOOK_FOR_ROOM: Duration = Duration::from_secs(1);
/// The interval at which consumers of former replicas are removed from the group.
const TIDY_EVERY: Duration = Duration::from_secs(600);

/// How callbacks are delivered.
#[derive(Clone, Debug)]
pub struct CallbacksConfig {
    pub policy: Policy,
    /// Signs callbacks, if there is a secret.
    pub signer: Option<Signer>,
    /// The maximum number of attempts for a job.
    pub attempts: u32,
    /// The delay before the second attempt.
    pub backoff: Duration,
    pub periods: Periods,
}

impl CallbacksConfig {
    /// Returns the client that calls endpoints.
    ///
    /// # Errors
    /// If the HTTP client cannot be created.
    pub fn client(&self) -> Result<Client> {
        Client::new(self.policy.clone(), self.signer.clone(), self.periods.call)
    }
}

/// Delivers callbacks, in parallel with other replicas.
pub struct Callbacks<C> {
    worker: Arc<Worker<C>>,
    slots: Arc<Semaphore>,
    /// Whether the retry set is full.
    full: Condition,
}

/// The unique counts of windows, by counter.
type UniqueCounts = BTreeMap<(Option<CounterName>, Window), Option<u64>>;

/// Delivers single jobs.
struct Worker<C> {
    attempts: u32,
    store: Store,
    queue: Queue,
    client: C,
    backoff: Backoff,
    hosts: Hosts,
    metrics: Metrics,
}

impl<C: Call> Callbacks<C> {
    /// Creates the consumer `replica`, for jobs whose windows have this length.
    pub fn new(
        config: &CallbacksConfig,
        client: C,
        length: WindowLength,
        store: Store,
        metrics: Metrics,
        replica: String,
    ) -> Self {
        let queue = Queue::new(&store, length, replica, config.periods.claim());
        let backoff = Backoff {
            first: config.backoff,
            longest: LONGEST_WAIT,
        };
        let worker = Worker {
            attempts: config.attempts,
            store,
            queue,
            client,
            backoff,
            hosts: Hosts::default(),
            metrics,
        };
        Self {
            worker: Arc::new(worker),
            slots: Arc::new(Semaphore::new(CONCURRENCY)),
            full: Condition::new(config.periods.quiet),
        }
    }

    /// Runs until a stop is requested, then waits for the deliveries in progress.
    pub async fn run(self, stop: CancellationToken) {
        future::join4(
            self.take_from(Source::New, &stop),
            self.take_from(Source::Waiting, &stop),
            self.take_from(Source::Abandoned, &stop),
            self.tidy(&stop),
        )
        .await;
        // When all slots are free, all deliveries are done.
        let _ = self.slots.acquire_many(CONCURRENCY as u32).await;
        self.worker.queue.leave().await;
    }

    /// Takes jobs from one source and delivers them, until a stop is requested.
    ///
    /// Taking is never interrupted: a job that Redis has handed out and no replica has received
    /// must wait until it is claimed.
    async fn take_from(&self, source: Source, stop: &CancellationToken) {
        let mut retry = Retry::default();
        while !stop.is_cancelled() {
            let wait = match self.take_some(source, stop).await {
                Ok(wait) => {
                    retry.worked();
                    wait
                }
                Err(error) => {
                    held_up(&error);
                    retry.pause()
                }
            };
            stop.run_until_cancelled(tokio::time::sleep(wait)).await;
        }
    }

    /// Takes and delivers some jobs. Returns the delay until the next time.
    async fn take_some(&self, source: Source, stop: &CancellationToken) -> RedisResult<Duration> {
        if source.fills_retry_set() && !self.has_room().await? {
            return Ok(LOOK_FOR_ROOM);
        }
        let Some(Some(mut slots)) = stop.run_until_cancelled(self.free_slots()).await else {
            return Ok(Duration::ZERO);
        };
        let attempts = self.worker.queue.take(source, slots.num_permits()).await?;
        if attempts.is_empty() {
            return Ok(source.look_every());
        }
        // Read after the jobs were taken, so that no count is older than its job. If this fails,
        // the jobs stay in place and are due again when their claim has expired.
        let counts = self.worker.unique_counts(&attempts).await?;
        for attempt in attempts {
            let of = (attempt.job.counter.clone(), attempt.job.window);
            // Without a count, the job stays in place, and is due again when its claim has expired.
            let Some(count) = counts.get(&of).copied() else {
                continue;
            };
            let slot = slots.split(1);
            let worker = self.worker.clone();
            let span = span_of(&attempt);
            let delivery = async move {
                worker.deliver(attempt, count).await;
                drop(slot);
            };
            tokio::spawn(delivery.instrument(span));
        }
        Ok(Duration::ZERO)
    }

    /// Acquires slots for as many jobs as can be delivered now.
    ///
    /// They are at least one, and at most a batch. The slots are acquired before the jobs are
    /// taken. Otherwise another replica could claim a job that waits for a slot.
    async fn free_slots(&self) -> Option<OwnedSemaphorePermit> {
        let free = self.slots.available_permits().clamp(1, BATCH);
        // The semaphore is never closed.
        self.slots.clone().acquire_many_owned(free as u32).await.ok()
    }

    /// Returns whether the retry set has room for a job that fails.
    async fn has_room(&self) -> RedisResult<bool> {
        let has_room = self.worker.queue.has_room().await?;
        if !has_room && self.full.met() {
            tracing::error!(
                "{MAX_RETRY} callbacks wait for another attempt: no new ones are taken until there is room"
            );
        }
        if has_room && self.full.absent() {
            tracing::info!("there is room again for callbacks that fail: new ones are taken");
        }
        Ok(has_room)
    }

    /// Regularly removes the consumers of former replicas, until a stop is requested.
    async fn tidy(&self, stop: &CancellationToken) {
        let mut retry = Retry::default();
        while !stop.is_cancelled() {
            let wait = match self.worker.queue.remove_gone().await {
                Ok(removed) => {
                    retry.worked();
                    tracing::debug!(removed, "removed consumers of former replicas");
                    TIDY_EVERY
                }
                Err(error) => {
                    held_up(&error);
                    retry.pause()
                }
            };
            stop.run_until_cancelled(tokio::time::sleep(wait)).await;
        }
    }
}

/// Returns the span of one attempt.
fn span_of(attempt: &Attempt) -> Span {
    tracing::info_span!(
        "callback delivery",
        otel.kind = "client",
        otel.status_code = Empty,
        http.response.status_code = Empty,
        endpoint = deliver::shown(&attempt.job.endpoint),
        window = attempt.job.window.to_string(),
        counter = attempt.job.counter.as_ref().map(CounterName::as_str),
        attempt = attempt.number,
    )
}

impl<C: Call> Worker<C> {
    /// `count` is `None` if the window's count is no longer known.
    async fn deliver(&self, attempt: Attempt, count: Option<u64>) {
        let verdict = match count {
            Some(count) => self.permitted(&attempt, count).await,
            None => self.forgotten(&attempt),
        };
        // The job stays in place: the endpoint is called again when the claim has expired,
        // independently of its answer.
        if let Err(error) = self.queue.settle(&attempt, &verdict).await {
            held_up(&error);
        }
    }

    /// Calls the endpoint if its host permits it.
    async fn permitted(&self, attempt: &Attempt, count: u64) -> Verdict {
        match self.hosts.permit(&attempt.job.endpoint).await {
            Ok(permit) => self.call(attempt, count, permit).await,
            Err(after) => {
                tracing::debug!(
                    endpoint = deliver::shown(&attempt.job.endpoint),
                    wait_ms = after.as_millis(),
                    "callback deferred: its host has reached its limit of calls"
                );
                Verdict::Deferred { after }
            }
        }
    }

    /// Gives up on a callback whose window has no report any more.
    fn forgotten(&self, attempt: &Attempt) -> Verdict {
        let error = "its window has no report, and older ones were removed (--keep-reports)".to_owned();
        let (endpoint, window) = (deliver::shown(&attempt.job.endpoint), attempt.job.window);
        let counter = attempt.job.counter.as_ref().map(CounterName::as_str);
        self.metrics.callback_attempt(None, "dead");
        tracing::error!(%endpoint, counter, %window, "callback given up on: {error}");
        Verdict::Dead { error }
    }

    async fn call(&self, attempt: &Attempt, count: u64, permit: Permit<'_>) -> Verdict {
        let job = &attempt.job;
        let number = attempt.number;
        let (endpoint, window) = (deliver::shown(&job.endpoint), job.window);
        let counter = job.counter.as_ref().map(CounterName::as_str);
        let start = Instant::now();
        let called = self.client.call(&attempt.id(), job, count).await;
        self.metrics.callback.observe(start.elapsed().as_secs_f64());
        match &called {
            Ok(_) | Err(Failure { status: Some(_), .. }) => permit.answered(),
            Err(_) => drop(permit),
        }
        match called {
            Ok(status) => {
                self.metrics.callback_attempt(Some(status), "delivered");
                Span::current().record("http.response.status_code", status);
                tracing::info!(%endpoint, counter, %window, unique = count, status, attempt = number, "callback delivered");
                Verdict::Done
            }
            Err(Failure {
                error,
                status,
                permanent,
                retry_after,
            }) => {
                Span::current()
                    .record("otel.status_code", "ERROR")
                    .record("http.response.status_code", status);
                if permanent || number >= self.attempts {
                    self.metrics.callback_attempt(status, "dead");
                    tracing::error!(%endpoint, counter, %window, status, attempt = number, "callback given up on: {error}");
                    Verdict::Dead { error }
                } else {
                    self.metrics.callback_attempt(status, "retried");
                    let wait = longer(self.backoff.wait(number), retry_after);
                    tracing::warn!(
                        %endpoint, counter, %window, status, attempt = number, next_in_ms = wait.as_millis(),
                        "callback failed: {error}"
                    );
                    Verdict::Again { after: wait, error }
                }
            }
        }
    }

    /// Reads the current counts of the jobs' counters and windows.
    ///
    /// For a final window, it reads the last reported count. `None` is the count of a window whose
    /// report was removed with older ones. A counter that cannot be read has no entry.
    async fn unique_counts(&self, attempts: &[Attempt]) -> RedisResult<UniqueCounts> {
        // The queue can have jobs of several window lengths, while hosts change to another length.
        let mut of_each: BTreeMap<(Option<&CounterName>, WindowLength), BTreeSet<Window>> = BTreeMap::new();
        for job in attempts.iter().map(|attempt| &attempt.job) {
            let each = of_each.entry((job.counter.as_ref(), job.window.length()));
            each.or_default().insert(job.window);
        }
        let unique_counts = of_each.into_iter().map(|((counter, _), windows)| async move {
            let windows: Vec<Window> = windows.into_iter().collect();
            let counts = self.unique_counts_of(counter, &windows).await?.into_iter();
            RedisResult::Ok(counts.map(move |(window, count)| ((counter.cloned(), window), count)))
        });
        let (mut counts, mut failed) = (UniqueCounts::new(), None);
        for read in future::join_all(unique_counts).await {
            match read {
                Ok(of_one) => counts.extend(of_one),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if counts.is_empty() => Err(error),
            Some(error) => {
                held_up(&error);
                Ok(counts)
            }
            None => Ok(counts),
        }
    }

    async fn unique_counts_of(
        &self,
        counter: Option<&CounterName>,
        windows: &[Window],
    ) -> RedisResult<Vec<(Window, Option<u64>)>> {
        let store = self.store.of(counter);
        let (counts, reports) = futures::try_join!(store.counts(windows), store.reports(windows))?;
        let mut removed_before = None;
        if let Some((window, _)) = windows.iter().zip(&reports).find(|(_, report)| report.is_none()) {
            // Read after the reports: a report that was removed is of a window before this one.
            removed_before = store.kept_from(window.length()).await?;
            // The clock was ahead if this is less long ago than reports are kept in any case.
            let now_ms = store.clock().await?.now_ms();
            let kept = window
                .length()
                .window_at_ms(now_ms.saturating_sub(millis(REPORTS_KEPT)));
            removed_before = removed_before.map(|removed_before| removed_before.min(kept));
        }
        let count = |(window, (counted, report)): (&Window, (u64, Option<Report>))| match report {
            Some(report) if report.is_final => (*window, Some(report.count)),
            Some(report) => (*window, Some(counted.max(report.count))),
            None if Some(*window) < removed_before => (*window, None),
            None => (*window, Some(counted)),
        };
        let counts = windows.iter().zip(counts.into_iter().zip(reports));
        Ok(counts.map(count).collect())
    }
}

/// Logs at debug level only, because `health` reports each error of Redis.
fn held_up(error: &RedisError) {
    tracing::debug!("callbacks are delayed, and some may be delivered again: {error}");
}

/// Returns at least the delay that the endpoint requested, up to an hour.
fn longer(wait: Duration, asked: Option<Duration>) -> Duration {
    wait.max(asked.unwrap_or_default().min(LONGEST_ASKED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_respected_up_to_an_hour() {
        let seconds = Duration::from_secs;
        for (wait, asked, expected) in [
            (1, None, 1),
            (1, Some(30), 30),
            (200, Some(1), 200),
            (1, Some(90_000), 3600),
        ] {
            assert_eq!(longer(seconds(wait), asked.map(seconds)), seconds(expected));
        }
    }
}
