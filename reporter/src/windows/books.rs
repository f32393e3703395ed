//! What the leader reads and writes in Redis. Whatever changes what is reported first checks the lease, in the same script.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use redis::{RedisResult, Script, ScriptInvocation};
use verve_protocol::keys::stats;
use verve_protocol::{CallbackJob, Report, Window, WindowLength, WindowRecord};

use super::lease::Lease;
use super::ledger::{self, Change, Final, Ledger, Stored, Stray};
use super::pending::Pending;
use crate::cli::Config;
use crate::clock::now_ms;
use crate::store::Store;

/// The most windows in one script.
pub const BATCH: usize = 200;

/// Writes down what is about to be published. Answers 0 without the lease.
///
/// KEYS: lease, pending. ARGV: lease holder, seconds to keep it, then fields and values.
const PREPARE: &str = r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[2], unpack(ARGV, 3))
redis.call('EXPIRE', KEYS[2], ARGV[2])
return 1";

/// Records reports, and queues fixed callbacks. What is recorded already is not recorded again, so that a script whose
/// answer was lost can be run again. Answers 0 without the lease.
///
/// KEYS: lease, reports, pending, callbacks. ARGV: lease holder, then for each report its field and value, and the number of
/// its job's arguments and these.
const RECORD: &str = r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local at = 2
while ARGV[at] do
  local field, report, n = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  if redis.call('HGET', KEYS[2], field) ~= report then
    if n > 0 then redis.call('XADD', KEYS[4], '*', unpack(ARGV, at + 3, at + 2 + n)) end
    redis.call('HSET', KEYS[2], field, report)
  end
  redis.call('HDEL', KEYS[3], field)
  at = at + 3 + n
end
return 1";

/// Makes windows final and removes their sets, each only if no id was added since it was counted. If there are other Redis,
/// writes down what was counted there. Answers nil without the lease, and otherwise for each window 1, or 0 if ids were added.
///
/// KEYS: lease, reports, pending, then the sets. ARGV: lease holder, seconds to keep what is pending, then for each window its
/// field, report, number of ids here, and what is pending or nothing.
const FINISH: &str = r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end
local done = {}
for i = 4, #KEYS do
  local at = 3 + (i - 4) * 4
  done[i - 3] = 0
  if redis.call('SCARD', KEYS[i]) == tonumber(ARGV[at + 2]) then
    redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1])
    if ARGV[at + 3] ~= '' then
      redis.call('HSET', KEYS[3], ARGV[at], ARGV[at + 3])
      redis.call('EXPIRE', KEYS[3], ARGV[2])
    end
    redis.call('UNLINK', KEYS[i])
    done[i - 3] = 1
  end
end
return done";

/// Reports, statistics and sets in Redis.
pub struct Books {
    config: Arc<Config>,
    store: Store,
    prepare: Script,
    record: Script,
    finish: Script,
}

/// Windows with ids that came too late, and how many.
pub type TooLate = Vec<(Window, u64)>;

impl Books {
    /// The books in these Redis.
    pub fn new(config: Arc<Config>, store: Store) -> Self {
        Self {
            config,
            store,
            prepare: Script::new(PREPARE),
            record: Script::new(RECORD),
            finish: Script::new(FINISH),
        }
    }

    fn length(&self) -> WindowLength {
        self.config.window_length
    }

    /// What a leader has to know to go on.
    pub async fn load(&self) -> RedisResult<Stored> {
        let keys = &self.store.keys;
        let reports = self
            .hash(&keys.reports(self.length()), "report", Report::from_json)
            .await?;
        let pending = self
            .hash(&keys.reports_pending(self.length()), "pending step", Pending::from_json)
            .await?;
        let oldest_ids = self.with_ids().await?.first().copied();
        let from = if reports.is_empty() { self.from().await? } else { None };
        Ok(Stored {
            reports,
            pending,
            from,
            oldest_ids,
        })
    }

    async fn hash<T>(
        &self,
        key: &str,
        what: &str,
        read: impl Fn(&str) -> serde_json::Result<T>,
    ) -> RedisResult<BTreeMap<Window, T>> {
        let mut hgetall = redis::cmd("HGETALL");
        let stored: BTreeMap<String, String> = self.store.first().command(hgetall.arg(key)).await?;
        let mut values = BTreeMap::new();
        for (start, json) in stored {
            match (self.window(&start), read(&json)) {
                (Some(window), Ok(value)) => drop(values.insert(window, value)),
                _ => tracing::error!("ignoring the {what} of {start}, which is not readable: {json}"),
            }
        }
        Ok(values)
    }

    fn window(&self, start: &str) -> Option<Window> {
        self.length().window_starting(start.parse().ok()?)
    }

    /// The windows that have ids, on whatever Redis.
    async fn with_ids(&self) -> RedisResult<BTreeSet<Window>> {
        let prefix = self.store.keys.ids_prefix(self.length());
        let keys = self.store.scan(&prefix).await?;
        let starts = keys.iter().filter_map(|key| key.strip_prefix(&prefix));
        Ok(starts.filter_map(|start| self.window(start)).collect())
    }

    /// The window with which the first reporter of all began: without a report it began in vain, but what has passed since is due.
    async fn from(&self) -> RedisResult<Option<Window>> {
        let current = self.length().window_at_ms(now_ms());
        let mut begin = redis::cmd("SET");
        begin
            .arg(self.store.keys.reports_from(self.length()))
            .arg(current.start());
        let began: Option<u64> = self.store.first().command(begin.arg("NX").arg("GET")).await?;
        Ok(began.and_then(|start| self.length().window_starting(start)))
    }

    /// The records of windows with these counts and revisions.
    pub async fn records(&self, news: &[(Window, u64, u64)]) -> RedisResult<Vec<WindowRecord>> {
        if news.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for (window, ..) in news {
            pipe.cmd("HMGET")
                .arg(self.store.keys.stats(*window))
                .arg(stats::REQUESTS)
                .arg(stats::DUPLICATE);
        }
        let stats: Vec<[Option<u64>; 2]> = self.store.first().run(&pipe).await?;
        let record = |(&(window, count, revision), [requests, duplicates]): (_, [Option<u64>; 2])| WindowRecord {
            window,
            count,
            revision,
            requests: requests.unwrap_or_default(),
            duplicates: duplicates.unwrap_or_default(),
        };
        Ok(news.iter().zip(stats).map(record).collect())
    }

    /// Writes down what is about to be published. Answers whether the lease is held: if not, nothing was written.
    pub async fn prepare(&self, lease: &Lease, records: &[WindowRecord]) -> RedisResult<bool> {
        for records in records.chunks(BATCH) {
            let mut script = self.prepare.key(self.store.keys.lease());
            script.key(self.store.keys.reports_pending(self.length()));
            script.arg(lease.holder()).arg(ledger::KEPT.as_secs());
            for record in records {
                script
                    .arg(record.window.start())
                    .arg(Pending::publish(record).to_json());
            }
            if !self.held(&script).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Records what Kafka has. Answers whether the lease is held: if not, not all was recorded.
    pub async fn record(&self, lease: &Lease, changes: &[Change]) -> RedisResult<bool> {
        for changes in changes.chunks(BATCH) {
            let mut script = self.record.key(self.store.keys.lease());
            script
                .key(self.store.keys.reports(self.length()))
                .key(self.store.keys.reports_pending(self.length()))
                .key(self.store.keys.callbacks())
                .arg(lease.holder());
            for Change { record, report } in changes {
                script.arg(record.window.start()).arg(report.to_json());
                let fields = self.job(record).map_or_else(Vec::new, |job| job.to_fields());
                script.arg(fields.len() * 2);
                for (name, value) in fields {
                    script.arg(name).arg(value);
                }
            }
            if !self.held(&script).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn job(&self, record: &WindowRecord) -> Option<CallbackJob> {
        let (endpoint, method) = self.config.callback.fixed.as_ref()?;
        Some(CallbackJob {
            endpoint: endpoint.clone(),
            method: *method,
            window: record.window,
            revision: Some(record.revision),
        })
    }

    async fn held(&self, script: &ScriptInvocation<'_>) -> RedisResult<bool> {
        Ok(self.store.first().script::<u8>(script).await? == 1)
    }

    /// Makes windows final. Answers those that are: ids were added to the others. `None` if the lease is lost.
    pub async fn finish(&self, lease: &Lease, finals: Vec<Final>) -> RedisResult<Option<Vec<Final>>> {
        let mut script = self.finish.key(self.store.keys.lease());
        script
            .key(self.store.keys.reports(self.length()))
            .key(self.store.keys.reports_pending(self.length()))
            .arg(lease.holder())
            .arg(ledger::KEPT.as_secs());
        for last in &finals {
            let elsewhere = last.elsewhere().map(|counted| Pending::Remove { counted }.to_json());
            script
                .key(self.store.keys.ids(last.window))
                .arg(last.window.start())
                .arg(last.report.to_json())
                .arg(last.counted.first().copied().unwrap_or_default())
                .arg(elsewhere.unwrap_or_default());
        }
        let done: Option<Vec<u8>> = self.store.first().script(&script).await?;
        Ok(done.map(|done| {
            let all = finals.into_iter().zip(done);
            all.filter(|(_, done)| *done == 1).map(|(window, _)| window).collect()
        }))
    }

    /// Removes what is left of the sets of final windows, of which so many ids were counted on each Redis. Those that came
    /// after that are added to `too_late`, also when one of several Redis fails: what the others removed is gone.
    pub async fn remove(&self, removals: &[(Window, Vec<u64>)], too_late: &mut TooLate) -> RedisResult<()> {
        let (late, removed) = self.store.remove_ids(removals).await;
        let late = removals.iter().zip(late).map(|((window, _), ids)| (*window, ids));
        too_late.extend(late.filter(|(_, ids)| *ids > 0));
        removed?;
        let mut hdel = redis::cmd("HDEL");
        hdel.arg(self.store.keys.reports_pending(self.length()));
        for (window, _) in removals {
            hdel.arg(window.start());
        }
        self.store.first().command::<u64>(&hdel).await.map(drop)
    }

    /// Removes the sets of past windows: their ids came too late, and are added to `found`. Windows that were never reported are given to the ledger.
    pub async fn sweep(&self, ledger: &mut Ledger, found: &mut TooLate) -> RedisResult<()> {
        let mut past = self.with_ids().await?;
        past.retain(|window| ledger.is_past(*window));
        let past: Vec<Window> = past.into_iter().collect();
        for windows in past.chunks(BATCH) {
            let mut hmget = redis::cmd("HMGET");
            hmget.arg(self.store.keys.reports(self.length()));
            for window in windows {
                hmget.arg(window.start());
            }
            let reports: Vec<Option<String>> = self.store.first().command(&hmget).await?;
            let now = now_ms();
            let too_late = windows.iter().zip(reports).filter(|(window, report)| {
                let report = report.as_ref().and_then(|json| Report::from_json(json).ok());
                ledger.stray(**window, report.as_ref(), now) == Stray::TooLate
            });
            let too_late: Vec<(Window, Vec<u64>)> = too_late.map(|(window, _)| (*window, Vec::new())).collect();
            if !too_late.is_empty() {
                self.remove(&too_late, found).await?;
            }
        }
        Ok(())
    }

    /// Removes reports that need not be kept, and answers how many.
    pub async fn trim(&self) -> RedisResult<usize> {
        let key = self.store.keys.reports(self.length());
        let mut reports = BTreeMap::new();
        let mut cursor = 0u64;
        loop {
            let mut hscan = redis::cmd("HSCAN");
            hscan.arg(&key).arg(cursor).arg("COUNT").arg(1000);
            let (next, fields): (u64, Vec<(String, String)>) = self.store.first().command(&hscan).await?;
            reports.extend(
                fields
                    .iter()
                    .filter_map(|(start, json)| Some((self.window(start)?, Report::from_json(json).ok()?))),
            );
            if next == 0 {
                break;
            }
            cursor = next;
        }
        let outdated = ledger::outdated(&reports, now_ms());
        for windows in outdated.chunks(BATCH) {
            let mut hdel = redis::cmd("HDEL");
            hdel.arg(&key);
            for window in windows {
                hdel.arg(window.start());
            }
            self.store.first().command::<u64>(&hdel).await?;
        }
        Ok(outdated.len())
    }
}
