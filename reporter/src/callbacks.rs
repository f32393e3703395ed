//! Callbacks: jobs from the queue in Redis, delivered by HTTP, tried again, or given up on.

mod backoff;
mod deliver;
mod policy;
mod queue;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures::future;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use verve_protocol::{Report, Window};

use crate::cli::Config;
use crate::store::Store;
use backoff::Backoff;
use deliver::{Client, Failure};
pub use policy::Policy;
use queue::{Attempt, Queue, Source, Verdict};

/// The most deliveries under way at once.
const CONCURRENCY: usize = 256;
/// The most jobs taken from the queue at once.
const BATCH: usize = 64;
/// How soon the queue is looked at again after it failed.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Delivers callbacks, side by side with other replicas.
pub struct Callbacks {
    worker: Arc<Worker>,
    slots: Arc<Semaphore>,
}

/// What delivers one job.
struct Worker {
    config: Arc<Config>,
    store: Store,
    queue: Queue,
    client: Client,
    backoff: Backoff,
}

impl Callbacks {
    /// A consumer called `replica`.
    pub fn new(config: Arc<Config>, store: Store, replica: String) -> Result<Self> {
        let queue = Queue::new(&store, config.window_length, replica)?;
        let client = Client::new(config.callback.policy.clone())?;
        let backoff = Backoff {
            first: config.callback.backoff,
        };
        let worker = Worker {
            config,
            store,
            queue,
            client,
            backoff,
        };
        Ok(Self {
            worker: Arc::new(worker),
            slots: Arc::new(Semaphore::new(CONCURRENCY)),
        })
    }

    /// Runs until a stop is asked for, then lets deliveries under way finish.
    pub async fn run(self, stop: CancellationToken) {
        let take = future::join_all([Source::New, Source::Waiting, Source::Abandoned].map(|source| self.take(source)));
        stop.run_until_cancelled(take).await;
        // All slots free: all deliveries done.
        let _ = self.slots.acquire_many(CONCURRENCY as u32).await;
        self.worker.queue.leave().await;
    }

    /// Takes jobs from one source and delivers them, for ever.
    async fn take(&self, source: Source) {
        loop {
            let free = self.free_slots().await;
            match self.worker.queue.take(source, free).await {
                Ok(attempts) if attempts.is_empty() => tokio::time::sleep(source.look_every()).await,
                Ok(attempts) => self.deliver(attempts).await,
                Err(error) => {
                    tracing::debug!("the callback queue failed: {error}");
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
        }
    }

    /// How many jobs to take: what can be delivered at once, at least one, at most a batch.
    async fn free_slots(&self) -> usize {
        // The semaphore is never closed.
        drop(self.slots.acquire().await);
        self.slots.available_permits().clamp(1, BATCH)
    }

    async fn deliver(&self, attempts: Vec<Attempt>) {
        for attempt in attempts {
            let Ok(slot) = self.slots.clone().acquire_owned().await else {
                return;
            };
            let worker = self.worker.clone();
            tokio::spawn(async move {
                worker.deliver(attempt).await;
                drop(slot);
            });
        }
    }
}

impl Worker {
    async fn deliver(&self, attempt: Attempt) {
        let verdict = match self.unique_count(attempt.job.window).await {
            Ok(count) => self.call(&attempt, count).await,
            // Redis is away: the job stays where it is, and is due again once its claim has run out.
            Err(error) => return tracing::debug!("callback put off: {error}"),
        };
        if let Err(error) = self.queue.settle(&attempt, &verdict).await {
            tracing::debug!("callback delivered, and perhaps once more, since the queue failed: {error}");
        }
    }

    async fn call(&self, attempt: &Attempt, count: u64) -> Verdict {
        let job = &attempt.job;
        let number = attempt.number;
        let (endpoint, window) = (deliver::shown(&job.endpoint), job.window);
        match self.client.call(job, count).await {
            Ok(status) => {
                tracing::info!(%endpoint, %window, unique = count, status, attempt = number, "callback delivered");
                Verdict::Done
            }
            Err(Failure {
                error,
                status,
                permanent,
                retry_after,
            }) => {
                if permanent || number >= self.config.callback.attempts {
                    tracing::error!(%endpoint, %window, status, attempt = number, "callback given up on: {error}");
                    Verdict::Dead { error }
                } else {
                    let wait = self.backoff.wait(number, retry_after);
                    tracing::warn!(
                        %endpoint, %window, status, attempt = number, next_in_ms = wait.as_millis(),
                        "callback failed: {error}"
                    );
                    Verdict::Again { after: wait, error }
                }
            }
        }
    }

    /// The window's count now. Once its ids have expired, what was reported last.
    async fn unique_count(&self, window: Window) -> redis::RedisResult<u64> {
        let mut hget = redis::cmd("HGET");
        hget.arg(self.store.keys.reports(window.length())).arg(window.start());
        let windows = [window];
        let (counts, report) = futures::try_join!(
            self.store.counts(&windows),
            self.store.first().command::<Option<String>>(&hget)
        )?;
        let reported = report
            .and_then(|json| Report::from_json(&json).ok())
            .map_or(0, |report| report.count);
        Ok(counts.iter().sum::<u64>().max(reported))
    }
}
