//! Reporting windows: one replica holds the lease, counts what is due or late, publishes it, and records that it has.
//!
//! What a crash between two steps leaves behind:
//! - before Kafka's acknowledgement: nothing is recorded, the window is due still
//! - after the acknowledgement and before the recording: the window is published again, with the same key and revision
//! - after the recording: nothing is left to do. The fixed callback's job is queued by the same script that records

mod lease;
mod ledger;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{RedisResult, Script};
use tokio_util::sync::CancellationToken;
use verve_protocol::keys::{UNREPORTED_SECONDS, stats};
use verve_protocol::{CallbackJob, Report, Window, WindowRecord};

use crate::cli::Config;
use crate::clock::now_ms;
use crate::kafka::Publisher;
use crate::store::Store;
use lease::Lease;
use ledger::{Ledger, Periods};

/// How often a reported window is counted again while it is watched for late ids.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// How soon a step that failed is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// The most windows reported in one step.
const BATCH: usize = 200;
/// How often the ids of windows that cannot be published are kept from expiring.
const KEEP_EVERY: Duration = Duration::from_secs(3600);
/// How long the ids of a window stay in Redis once its late period is over.
const KEEP_FINAL: Duration = Duration::from_secs(60);

/// Records reports, and queues fixed callbacks, if the lease is still held. Answers 1 if it was.
///
/// KEYS: lease, reports, callbacks. ARGV: lease holder, number of reports, their fields and values, then for each job
/// its number of arguments and these.
const RECORD: &str = r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local at = 3
for _ = 1, tonumber(ARGV[2]) do
  redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1])
  at = at + 2
end
while ARGV[at] do
  local n = tonumber(ARGV[at])
  redis.call('XADD', KEYS[3], '*', unpack(ARGV, at + 1, at + n))
  at = at + n + 1
end
return 1";

/// Reports windows for as long as it holds the lease.
pub struct Reporter {
    config: Arc<Config>,
    store: Store,
    publisher: Publisher,
    replica: String,
    record: Script,
}

/// What is to be published and recorded of one window.
struct Change {
    record: WindowRecord,
    report: Report,
}

impl Reporter {
    /// A reporter that calls itself `replica` in the lease.
    pub fn new(config: Arc<Config>, store: Store, publisher: Publisher, replica: String) -> Self {
        Self {
            config,
            store,
            publisher,
            replica,
            record: Script::new(RECORD),
        }
    }

    /// Runs until a stop is asked for.
    pub async fn run(self, stop: CancellationToken) {
        let mut ledger = None;
        while let Some(lease) = stop
            .run_until_cancelled(Lease::acquire(&self.store, &self.replica))
            .await
        {
            tracing::info!(replica = self.replica, "holding the lease: reporting windows");
            // A stop lets the step under way finish, so that what Kafka has is recorded.
            let led = tokio::select! {
                led = self.lead(&lease, &mut ledger, &stop) => led,
                () = lease.lost() => Ok(()),
            };
            match led {
                Ok(()) if stop.is_cancelled() => {}
                Ok(()) => tracing::warn!(replica = self.replica, "lost the lease"),
                Err(error) => tracing::debug!("reporting interrupted: {error}"),
            }
            lease.release().await;
            stop.run_until_cancelled(tokio::time::sleep(RETRY_AFTER)).await;
        }
    }

    /// Reports windows until a stop is asked for, the lease is lost, or Redis fails.
    async fn lead(&self, lease: &Lease, known: &mut Option<Ledger>, stop: &CancellationToken) -> RedisResult<()> {
        let ledger = self.load(known.as_ref()).await?;
        let ledger = known.insert(ledger);
        let mut kept = None;
        while !stop.is_cancelled() {
            let now = now_ms();
            let due = ledger.due(now, BATCH);
            let watched = ledger.watched();
            let windows: Vec<Window> = due.iter().copied().chain(watched).collect();
            let counts = self.store.counts(&windows).await?;
            let (changes, mut finals) = self.changes(ledger, &windows, &counts, now).await?;
            // A leader that was paused must not publish what another one has reported better.
            if !lease.is_held() {
                return Ok(());
            }
            let (done, unsent) = self.publish(changes).await;
            finals.retain(|window| !unsent.contains(window));
            if !self.record(lease, ledger, &done).await? || !self.finish(lease, ledger, finals).await? {
                return Ok(());
            }
            if !unsent.is_empty() {
                self.keep_unreported(ledger, &mut kept).await?;
                stop.run_until_cancelled(tokio::time::sleep(RETRY_AFTER)).await;
            } else if due.len() < BATCH {
                let wait = Duration::from_millis(ledger.next_due_ms().saturating_sub(now_ms()));
                stop.run_until_cancelled(tokio::time::sleep(wait.min(WATCH_EVERY)))
                    .await;
            }
        }
        Ok(())
    }

    /// What was reported so far, and where to go on. `known` is what this replica last knew.
    async fn load(&self, known: Option<&Ledger>) -> RedisResult<Ledger> {
        let length = self.config.window_length;
        let mut hgetall = redis::cmd("HGETALL");
        hgetall.arg(self.store.keys.reports(length));
        let stored: BTreeMap<u64, String> = self.store.first().command(&hgetall).await?;
        let mut reports = BTreeMap::new();
        for (start, json) in stored {
            match (length.window_starting(start), Report::from_json(&json)) {
                (Some(window), Ok(report)) => drop(reports.insert(window, report)),
                _ => tracing::error!("ignoring the report of {start}, which is not readable: {json}"),
            }
        }
        if let Some(known) = known {
            known.remind(&mut reports);
        }
        let prefix = self.store.keys.ids_prefix(length);
        let keys = self.store.scan(&prefix).await?;
        let starts = keys.iter().filter_map(|key| key.strip_prefix(&prefix)?.parse().ok());
        let oldest_ids = starts.filter_map(|start| length.window_starting(start)).min();
        let from = if reports.is_empty() { self.from().await? } else { None };
        let periods = Periods {
            grace: self.config.grace,
            late: self.config.late,
        };
        let (ledger, lost) = Ledger::resume(length, periods, reports, from, oldest_ids, now_ms());
        if let Some(lost) = lost {
            tracing::error!(
                first = %lost.first, last = %lost.last, windows = lost.windows,
                "windows not reported: no reporter ran for so long that their ids have expired"
            );
        }
        Ok(ledger)
    }

    /// The window with which the first reporter of all began: without a report it began in vain, but what has passed since is due.
    async fn from(&self) -> RedisResult<Option<Window>> {
        let length = self.config.window_length;
        let current = length.window_at_ms(now_ms());
        let mut begin = redis::cmd("SET");
        begin.arg(self.store.keys.reports_from(length)).arg(current.start());
        let began: Option<u64> = self.store.first().command(begin.arg("NX").arg("GET")).await?;
        Ok(began.and_then(|start| length.window_starting(start)))
    }

    /// What has to be published of `windows`, and which of them are final.
    async fn changes(
        &self,
        ledger: &Ledger,
        windows: &[Window],
        counts: &[u64],
        now: u64,
    ) -> RedisResult<(Vec<Change>, Vec<Window>)> {
        let (mut news, mut finals) = (Vec::new(), Vec::new());
        for (window, count) in windows.iter().zip(counts) {
            let decision = ledger.decide(*window, *count, now);
            news.extend(decision.publish.map(|report| (*window, report)));
            finals.extend(decision.is_final.then_some(*window));
        }
        let stats = self.stats(&news).await?;
        let changes = news
            .into_iter()
            .zip(stats)
            .map(|((window, report), [requests, duplicates])| Change {
                record: WindowRecord {
                    window,
                    count: report.count,
                    revision: report.revision,
                    requests,
                    duplicates,
                },
                report,
            });
        Ok((changes.collect(), finals))
    }

    async fn stats(&self, windows: &[(Window, Report)]) -> RedisResult<Vec<[u64; 2]>> {
        if windows.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for (window, _) in windows {
            pipe.cmd("HMGET")
                .arg(self.store.keys.stats(*window))
                .arg(stats::REQUESTS)
                .arg(stats::DUPLICATE);
        }
        let found: Vec<[Option<u64>; 2]> = self.store.first().run(&pipe).await?;
        Ok(found
            .into_iter()
            .map(|fields| fields.map(Option::unwrap_or_default))
            .collect())
    }

    /// What Kafka has acknowledged, and the windows that it has not.
    async fn publish(&self, mut changes: Vec<Change>) -> (Vec<Change>, Vec<Window>) {
        let records: Vec<WindowRecord> = changes.iter().map(|change| change.record).collect();
        let acknowledged = if records.is_empty() {
            0
        } else {
            self.publisher.publish(&records).await
        };
        let unsent = changes.split_off(acknowledged);
        (changes, unsent.into_iter().map(|change| change.record.window).collect())
    }

    /// While Kafka is away, the ids of windows that are due must not expire. Prolonged now and then.
    async fn keep_unreported(&self, ledger: &Ledger, kept: &mut Option<Instant>) -> RedisResult<()> {
        if kept.is_none_or(|kept| kept.elapsed() > KEEP_EVERY) {
            let due = ledger.due(now_ms(), usize::MAX);
            self.store
                .expire_ids(&due, Duration::from_secs(UNREPORTED_SECONDS))
                .await?;
            *kept = Some(Instant::now());
        }
        Ok(())
    }

    /// Records what was published. Says whether the lease is still held: if not, nothing was recorded.
    async fn record(&self, lease: &Lease, ledger: &mut Ledger, changes: &[Change]) -> RedisResult<bool> {
        if changes.is_empty() {
            return Ok(true);
        }
        let reports: Vec<(Window, Report)> = changes
            .iter()
            .map(|change| (change.record.window, change.report))
            .collect();
        if !self.write(lease, &reports, changes).await? {
            return Ok(false);
        }
        ledger.record(reports);
        for Change { record, .. } in changes {
            tracing::info!(
                window = %record.window,
                unique = record.count,
                revision = record.revision,
                requests = record.requests,
                duplicates = record.duplicates,
                "{}",
                if record.revision == 0 { "window reported" } else { "window corrected" },
            );
        }
        Ok(true)
    }

    /// Lets the ids of final windows expire, then records that nobody need watch them. Says whether the lease is still held.
    async fn finish(&self, lease: &Lease, ledger: &mut Ledger, finals: Vec<Window>) -> RedisResult<bool> {
        let finish = |window: &Window| {
            Some((
                *window,
                Report {
                    is_final: true,
                    ..*ledger.report(*window)?
                },
            ))
        };
        let reports: Vec<(Window, Report)> = finals.iter().filter_map(finish).collect();
        if reports.is_empty() {
            return Ok(true);
        }
        self.store.expire_ids(&finals, KEEP_FINAL).await?;
        let held = self.write(lease, &reports, &[]).await?;
        if held {
            ledger.record(reports);
        }
        Ok(held)
    }

    async fn write(&self, lease: &Lease, reports: &[(Window, Report)], called: &[Change]) -> RedisResult<bool> {
        let keys = &self.store.keys;
        let mut script = self.record.key(keys.lease());
        script
            .key(keys.reports(self.config.window_length))
            .key(keys.callbacks());
        script.arg(lease.holder()).arg(reports.len());
        for (window, report) in reports {
            script.arg(window.start()).arg(report.to_json());
        }
        if let Some((endpoint, method)) = &self.config.callback.fixed {
            for Change { record, .. } in called {
                let job = CallbackJob {
                    endpoint: endpoint.clone(),
                    method: *method,
                    window: record.window,
                    revision: Some(record.revision),
                };
                let fields = job.to_fields();
                script.arg(fields.len() * 2);
                for (name, value) in fields {
                    script.arg(name).arg(value);
                }
            }
        }
        Ok(self.store.first().script::<u8>(&script).await? == 1)
    }
}
