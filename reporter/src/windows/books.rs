//! What the leader reads and writes in Redis. Whatever changes what is reported first checks the lease, in the same script.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use redis::{RedisResult, Script, ScriptInvocation};
use verve_protocol::keys::UNREPORTED_SECONDS;
use verve_protocol::{CallbackJob, Report, Window, WindowLength, WindowRecord};

use super::WindowsConfig;
use super::lease::Lease;
use super::ledger::{self, Change, Ledger, News, Stored, Stray};
use super::pending::Pending;
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

/// Makes windows final, and writes down that what they were counted by is to be removed. Answers 0 without the lease.
///
/// KEYS: lease, reports, pending. ARGV: lease holder, seconds to keep what is pending, what is pending, then for each window its
/// field and report.
const FINISH: &str = r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for i = 4, #ARGV, 2 do
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
  redis.call('HSET', KEYS[3], ARGV[i], ARGV[3])
end
redis.call('EXPIRE', KEYS[3], ARGV[2])
return 1";

/// Forgets that closed sets are to be removed. Of such a window something else may be pending by now, if this leader was followed
/// by another one.
///
/// KEYS: pending. ARGV: what is pending, then the windows' fields.
const REMOVED: &str = r"
for i = 2, #ARGV do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
return 1";

/// From when on a window that has not begun, and has ids all the same, is worth a word: clocks are never quite the same.
const AHEAD: Duration = Duration::from_secs(5);

/// Reports, statistics and sets in Redis.
pub struct Books {
    config: WindowsConfig,
    store: Store,
    prepare: Script,
    record: Script,
    finish: Script,
    removed: Script,
}

/// What a search for ids that nobody expects has found.
#[derive(Debug, Default)]
pub struct Swept {
    /// Windows with ids that came after they were final, and how many since the last search.
    pub late: Vec<(Window, u64)>,
    /// What to publish of such windows.
    pub news: Vec<News>,
    /// Windows that have not begun, and have ids.
    pub ahead: Vec<Window>,
}

impl Books {
    /// The books in these Redis.
    pub fn new(config: WindowsConfig, store: Store) -> Self {
        Self {
            config,
            store,
            prepare: Script::new(PREPARE),
            record: Script::new(RECORD),
            finish: Script::new(FINISH),
            removed: Script::new(REMOVED),
        }
    }

    fn length(&self) -> WindowLength {
        self.config.length
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
        let stored: BTreeMap<String, String> = self.store.redis().command(hgetall.arg(key)).await?;
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

    /// The windows that have ids.
    async fn with_ids(&self) -> RedisResult<BTreeSet<Window>> {
        self.windows_by(&self.store.keys.ids_pattern(self.length())).await
    }

    /// The windows that have a key of this pattern.
    async fn windows_by(&self, pattern: &str) -> RedisResult<BTreeSet<Window>> {
        let keys = self.store.scan(pattern).await?;
        let windows = keys
            .iter()
            .filter_map(|key| self.store.keys.window_of(key, self.length()));
        Ok(windows.collect())
    }

    /// The window with which the first reporter of all began: without a report it began in vain, but what has passed since is due.
    async fn from(&self) -> RedisResult<Option<Window>> {
        let current = self.length().window_at_ms(now_ms());
        let mut begin = redis::cmd("SET");
        begin
            .arg(self.store.keys.reports_from(self.length()))
            .arg(current.start());
        let began: Option<u64> = self.store.redis().command(begin.arg("NX").arg("GET")).await?;
        Ok(began.and_then(|start| self.length().window_starting(start)))
    }

    /// The records of these news.
    pub async fn records(&self, news: &[News]) -> RedisResult<Vec<WindowRecord>> {
        let windows: Vec<Window> = news.iter().map(|news| news.window).collect();
        let stats = self.store.requests(&windows).await?;
        let record = |(news, [requests, duplicates]): (&News, [u64; 2])| WindowRecord {
            window: news.window,
            count: news.count,
            revision: news.revision,
            requests: requests.max(news.before[0]),
            duplicates: duplicates.max(news.before[1]),
            late: news.late,
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
        let (endpoint, method) = self.config.callback.as_ref()?;
        Some(CallbackJob {
            endpoint: endpoint.clone(),
            method: *method,
            window: record.window,
            revision: Some(record.revision),
        })
    }

    async fn held(&self, script: &ScriptInvocation<'_>) -> RedisResult<bool> {
        Ok(self.store.redis().script::<u8>(script).await? == 1)
    }

    /// Makes windows final. Answers whether the lease is held: if not, nothing was changed.
    pub async fn finish(&self, lease: &Lease, finals: &[(Window, Report)]) -> RedisResult<bool> {
        let mut script = self.finish.key(self.store.keys.lease());
        script
            .key(self.store.keys.reports(self.length()))
            .key(self.store.keys.reports_pending(self.length()))
            .arg(lease.holder())
            .arg(ledger::KEPT.as_secs())
            .arg(Pending::Remove.to_json());
        for (window, report) in finals {
            script.arg(window.start()).arg(report.to_json());
        }
        self.held(&script).await
    }

    /// Removes what final windows were counted by.
    pub async fn remove(&self, windows: &[Window]) -> RedisResult<()> {
        self.store.remove_closed(windows).await?;
        let mut script = self.removed.key(self.store.keys.reports_pending(self.length()));
        script.arg(Pending::Remove.to_json());
        for window in windows {
            script.arg(window.start());
        }
        self.store.redis().script::<u8>(&script).await.map(drop)
    }

    /// Looks for ids in windows that nobody expects them in. Those of final windows are put aside, also when some of their
    /// sets fail. Windows that were never reported are given to the ledger.
    pub async fn sweep(&self, ledger: &mut Ledger, swept: &mut Swept) -> RedisResult<()> {
        let with_ids = self.with_ids().await?;
        self.find_ahead(&with_ids, swept).await?;
        let past: Vec<Window> = with_ids.into_iter().filter(|window| ledger.is_past(*window)).collect();
        let reports = self.store.reports(&past).await?;
        let now = now_ms();
        let strays = past.into_iter().zip(reports);
        let late = strays.filter(|(window, report)| ledger.stray(*window, report.as_ref(), now) == Stray::TooLate);
        let late: Vec<Window> = late.map(|(window, _)| window).collect();
        let mut put_aside = Ok(());
        for windows in late.chunks(BATCH) {
            let (moved, result) = self.store.put_aside(windows).await;
            let moved = windows.iter().copied().zip(moved);
            swept.late.extend(moved.filter(|(_, ids)| *ids > 0));
            put_aside = put_aside.and(result);
        }
        put_aside?;
        // Also those that were put aside before somebody died.
        let late = self.windows_by(&self.store.keys.late_pattern(self.length())).await?;
        let late: Vec<Window> = late.into_iter().collect();
        let (counts, reports) = (self.store.late(&late).await?, self.store.reports(&late).await?);
        let told = late.into_iter().zip(counts).zip(reports);
        let news = told.filter_map(|((window, ids), report)| ledger.late(window, &report?, ids));
        swept.news.extend(news);
        Ok(())
    }

    /// Finds windows that have not begun, and keeps their ids until they are due.
    async fn find_ahead(&self, with_ids: &BTreeSet<Window>, swept: &mut Swept) -> RedisResult<()> {
        let now = Duration::from_millis(now_ms());
        for window in with_ids {
            let begins_in = Duration::from_secs(window.start()).saturating_sub(now);
            if begins_in > AHEAD {
                let kept = begins_in.min(ledger::KEPT) + Duration::from_secs(UNREPORTED_SECONDS);
                self.store.expire_ids(&[*window], kept).await?;
                swept.ahead.push(*window);
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
            let (next, fields): (u64, Vec<(String, String)>) = self.store.redis().command(&hscan).await?;
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
            self.store.redis().command::<u64>(&hdel).await?;
        }
        Ok(outdated.len())
    }
}
