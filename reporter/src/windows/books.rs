//! What the leader reads and writes in Redis. Whatever changes what is reported first checks the lease, in the same script.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use redis::{RedisResult, Script, ScriptInvocation};
use verve_protocol::keys::{AHEAD_SECONDS, INDEX_SECONDS, progress, read_indexed};
use verve_protocol::{CallbackJob, Report, Window, WindowLength, WindowRecord};

use super::WindowsConfig;
use super::lease::Lease;
use super::ledger::{self, Change, IDS_KEPT, Ledger, News, Stored, Stray};
use super::pending::Pending;
use crate::store::Store;

/// The most windows in one script.
pub const BATCH: usize = 200;

/// Writes down what is about to be published. Answers 0 without the lease. Begins with what a full Redis allows, see [`crate::store`]; as those that
/// follow it.
///
/// KEYS: lease, pending. ARGV: lease holder, seconds to keep it, then fields and values.
const PREPARE: &str = r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[2], '')
redis.call('HSET', KEYS[2], unpack(ARGV, 3))
redis.call('EXPIRE', KEYS[2], ARGV[2])
return 1";

/// Records reports, and queues fixed callbacks. What is recorded already is not recorded again, so that a script whose
/// answer was lost can be run again. Answers 0 without the lease.
///
/// KEYS: lease, reports, pending, callbacks, open reports, progress. ARGV: lease holder, then for each report its field and value, whether it is
/// open (1 or 0), and the number of its job's arguments and these.
const RECORD: &str = r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[3], '')
local newest = tonumber(redis.call('HGET', KEYS[6], 'newest') or -1)
local at = 2
while ARGV[at] do
  local field, report, open, n = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  if redis.call('HGET', KEYS[2], field) ~= report then
    if n > 0 then redis.call('XADD', KEYS[4], '*', unpack(ARGV, at + 4, at + 3 + n)) end
    redis.call('HSET', KEYS[2], field, report)
  end
  if open == '1' then redis.call('ZADD', KEYS[5], field, field) else redis.call('ZREM', KEYS[5], field) end
  newest = math.max(newest, tonumber(field))
  redis.call('HDEL', KEYS[3], field)
  at = at + 4 + n
end
redis.call('HSET', KEYS[6], 'newest', newest)
return 1";

/// Makes windows final, and writes down that what they were counted by is to be removed. Answers 0 without the lease.
///
/// KEYS: lease, reports, pending, open reports. ARGV: lease holder, seconds to keep what is pending, what is pending, then for each window its
/// field and report.
const FINISH: &str = r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for i = 4, #ARGV, 2 do
  redis.call('ZREM', KEYS[4], ARGV[i])
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
  redis.call('HSET', KEYS[3], ARGV[i], ARGV[3])
end
redis.call('EXPIRE', KEYS[3], ARGV[2])
return 1";

/// Takes back that windows are final, and that what they were counted by is to be removed. Answers 0 without the lease.
///
/// KEYS: lease, reports, open reports, pending. ARGV: lease holder, what is pending of such a window, then for each window its field and report.
const REOPEN: &str = r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[4], '')
for i = 3, #ARGV, 2 do
  if redis.call('HGET', KEYS[4], ARGV[i]) == ARGV[2] then redis.call('HDEL', KEYS[4], ARGV[i]) end
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
  redis.call('ZADD', KEYS[3], ARGV[i], ARGV[i])
end
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

/// Notes which windows have a report, from what is there: for reports of a version that did not note it. What a leader has noted meanwhile stays.
///
/// KEYS: open reports, progress. ARGV: the newest window's start, then those of windows that are not final.
const NOTE_REPORTS: &str = r"
redis.call('HDEL', KEYS[2], '')
if redis.call('HSETNX', KEYS[2], 'newest', ARGV[1]) == 0 then return 0 end
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], ARGV[i], ARGV[i]) end
return 1";

/// Notes how far the reporter is.
///
/// KEYS: progress. ARGV: what, and its value.
const NOTE_PROGRESS: &str = r"
redis.call('HDEL', KEYS[1], '')
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1";

/// Notes where the first reporter of all began, unless one has, and answers where that was.
///
/// KEYS: where that is noted. ARGV: the start of the window that it is to begin with.
const NOTE_BEGIN: &str = r"
local began = redis.call('GET', KEYS[1])
if began then return began end
redis.call('UNLINK', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]";

/// Forgets that windows had ids, unless that was noted again since. Scores as numbers: `ZSCAN` and `ZSCORE` write the same one differently.
///
/// KEYS: the windows that have ids. ARGV: members, each with its score.
const FORGET_IDS: &str = r"
for i = 1, #ARGV, 2 do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if score and tonumber(score) == tonumber(ARGV[i + 1]) then redis.call('ZREM', KEYS[1], ARGV[i]) end
end
return 1";

/// Notes that ids of windows are about to be put aside.
///
/// KEYS: the windows of which some are. ARGV: for how long it is known, in seconds, and their starts.
const NOTE_LATE: &str = r"
redis.call('ZREM', KEYS[1], '')
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], ARGV[i], ARGV[i]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1";

/// The most windows whose reports one sweep removes.
const TRIMMED_AT_ONCE: usize = 50_000;

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
    /// Windows that were never reported, and have ids.
    pub unreported: Vec<Window>,
    /// Windows that have not begun, and have ids.
    pub ahead: Vec<Window>,
    /// How many partitions hosts have, if there are more than are counted.
    pub most_partitions: Option<u16>,
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

    /// What a leader has to know to go on, at `now_ms`. Of reports only those that may change, and those that `known` has something of: others may have
    /// made them final since.
    pub async fn load(&self, known: Option<&Ledger>, now_ms: u64) -> RedisResult<Stored> {
        let mut newest = self.progress(progress::NEWEST).await?;
        if newest.is_none() {
            newest = self.note_reports().await?;
        }
        let newest = newest.and_then(|start| self.length().window_starting(start));
        let mut stored = Stored {
            newest,
            pending: self.pending().await?,
            kept_ms: self.progress(progress::KEPT).await?,
            ..Stored::default()
        };
        let Some(newest) = newest else {
            stored.from = self.from(now_ms).await?;
            // No report can be of a window before that.
            let certain = ledger::window_certain_at(self.length(), now_ms);
            let first = stored.from.map_or(certain, |from| from.min(certain));
            self.set_progress(progress::TRIMMED, first.start()).await?;
            return Ok(stored);
        };
        let mut open = redis::cmd("ZRANGE");
        open.arg(self.store.keys.reports_open(self.length())).arg(0).arg(-1);
        let open: Vec<u64> = self.store.redis().command(&open).await?;
        let open = open
            .into_iter()
            .filter_map(|start| self.length().window_starting(start));
        // And those that were reported before they had ended: the clock was ahead for a while.
        let early = std::iter::successors(Some(newest), |window| window.previous());
        let early = early.take_while(|window| *window == newest || window.end_ms() > now_ms);
        let known = known.map(Ledger::known).unwrap_or_default();
        let windows: BTreeSet<Window> = open.chain(early).chain(known).collect();
        let windows: Vec<Window> = windows.into_iter().collect();
        let reports = windows.iter().copied().zip(self.store.reports(&windows).await?);
        stored.reports = reports.filter_map(|(window, report)| Some((window, report?))).collect();
        Ok(stored)
    }

    async fn progress(&self, field: &str) -> RedisResult<Option<u64>> {
        let mut hget = redis::cmd("HGET");
        hget.arg(self.store.keys.reports_progress(self.length())).arg(field);
        self.store.redis().command(&hget).await
    }

    async fn set_progress(&self, field: &str, value: u64) -> RedisResult<()> {
        let script = Script::new(NOTE_PROGRESS);
        let mut note = script.key(self.store.keys.reports_progress(self.length()));
        note.arg(field).arg(value);
        self.store.redis().script::<u8>(&note).await.map(drop)
    }

    /// What was begun and not finished.
    async fn pending(&self) -> RedisResult<BTreeMap<Window, Pending>> {
        let mut hgetall = redis::cmd("HGETALL");
        hgetall.arg(self.store.keys.reports_pending(self.length()));
        let stored: BTreeMap<String, String> = self.store.redis().command(&hgetall).await?;
        let mut pending = BTreeMap::new();
        for (start, json) in stored {
            match (self.window(&start), Pending::from_json(&json)) {
                (Some(window), Ok(step)) => drop(pending.insert(window, step)),
                _ => tracing::error!("ignoring the pending step of {start}, which is not readable: {json}"),
            }
        }
        Ok(pending)
    }

    /// Notes the newest report and those that are open, and answers the start of the newest window that has one. Does nothing without a report.
    async fn note_reports(&self) -> RedisResult<Option<u64>> {
        let (mut newest, mut open) = (None, Vec::new());
        self.each_report(|window, report| {
            newest = newest.max(Some(window.start()));
            open.extend((!report.is_final).then_some(window.start()));
        })
        .await?;
        let Some(start) = newest else {
            return Ok(None);
        };
        let script = Script::new(NOTE_REPORTS);
        let mut note = script.key(self.store.keys.reports_open(self.length()));
        note.key(self.store.keys.reports_progress(self.length())).arg(start);
        // Few: those of which somebody has died before they were final.
        open.into_iter().for_each(|start| {
            note.arg(start);
        });
        self.store.redis().script::<u8>(&note).await?;
        self.progress(progress::NEWEST).await
    }

    /// Reads all reports, piece by piece.
    async fn each_report(&self, mut with: impl FnMut(Window, Report)) -> RedisResult<()> {
        let key = self.store.keys.reports(self.length());
        let mut cursor = 0u64;
        loop {
            let mut hscan = redis::cmd("HSCAN");
            hscan.arg(&key).arg(cursor).arg("COUNT").arg(1000);
            let (next, fields): (u64, Vec<(String, String)>) = self.store.redis().command(&hscan).await?;
            for (start, json) in &fields {
                match (self.window(start), Report::from_json(json)) {
                    (Some(window), Ok(report)) => with(window, report),
                    _ => tracing::error!("ignoring the report of {start}, which is not readable: {json}"),
                }
            }
            if next == 0 {
                return Ok(());
            }
            cursor = next;
        }
    }

    /// Keeps the ids of windows from expiring that the leader still needs, and notes when: the next one knows by that what may have expired.
    pub async fn keep(&self, ledger: &Ledger, now_ms: u64) -> RedisResult<()> {
        let mut windows = ledger.ended(now_ms);
        windows.extend(ledger.needed());
        self.store.keep_ids(&windows, |_| IDS_KEPT).await?;
        self.set_progress(progress::KEPT, now_ms).await
    }

    /// Has windows counted again that were made final before they had ended, of which these are the reports. Answers whether the lease is held: if not,
    /// no report was changed.
    pub async fn reopen(&self, lease: &Lease, stored: &Stored, windows: &[Window]) -> RedisResult<bool> {
        self.store.reopen(windows).await?;
        let script = Script::new(REOPEN);
        for windows in windows.chunks(BATCH) {
            let mut reopen = script.key(lease.key());
            reopen
                .key(self.store.keys.reports(self.length()))
                .key(self.store.keys.reports_open(self.length()))
                .key(self.store.keys.reports_pending(self.length()))
                .arg(lease.holder())
                .arg(Pending::Remove.to_json());
            for (window, report) in windows
                .iter()
                .filter_map(|window| Some((window, stored.reports.get(window)?)))
            {
                reopen.arg(window.start()).arg(report.to_json());
            }
            if !self.held(&reopen).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn window(&self, start: &str) -> Option<Window> {
        self.length().window_starting(start.parse().ok()?)
    }

    /// The windows that have ids, as whoever added the first of them has noted.
    async fn with_ids(&self) -> RedisResult<WithIds> {
        let mut found = WithIds::default();
        let mut cursor = 0u64;
        loop {
            let mut zscan = redis::cmd("ZSCAN");
            zscan
                .arg(self.store.keys.windows(self.length()))
                .arg(cursor)
                .arg("COUNT")
                .arg(1000);
            let (next, members): (u64, Vec<(String, String)>) = self.store.redis().command(&zscan).await?;
            for (member, score) in members {
                let Some((window, partitions)) = read_indexed(&member, self.length()) else {
                    tracing::error!("ignoring {member:?} among the windows that have ids, which is not readable");
                    continue;
                };
                let more = Some(partitions).filter(|partitions| *partitions > self.store.partitions().count());
                found.most_partitions = found.most_partitions.max(more);
                found.noted.entry(window).or_default().push((member, score));
            }
            if next == 0 {
                return Ok(found);
            }
            cursor = next;
        }
    }

    /// Forgets that these windows had ids, unless somebody has noted it again since.
    async fn forget_ids(&self, with_ids: &WithIds, windows: &[Window]) -> RedisResult<()> {
        let script = Script::new(FORGET_IDS);
        let noted = windows.iter().filter_map(|window| with_ids.noted.get(window)).flatten();
        let noted: Vec<&(String, String)> = noted.collect();
        for noted in noted.chunks(BATCH) {
            let mut forget = script.key(self.store.keys.windows(self.length()));
            for (member, score) in noted {
                forget.arg(member).arg(score);
            }
            self.store.redis().script::<u8>(&forget).await?;
        }
        Ok(())
    }

    /// Notes that ids of these windows are about to be put aside.
    async fn note_late(&self, windows: &[Window]) -> RedisResult<()> {
        let script = Script::new(NOTE_LATE);
        let mut note = script.key(self.store.keys.windows_late(self.length()));
        note.arg(INDEX_SECONDS);
        for window in windows {
            note.arg(window.start());
        }
        self.store.redis().script::<u8>(&note).await.map(drop)
    }

    /// The windows ids of which were put aside, with how many there are still. Those of which there are none any more are forgotten.
    async fn late(&self) -> RedisResult<Vec<(Window, u64)>> {
        let key = self.store.keys.windows_late(self.length());
        let starts: Vec<u64> = self
            .store
            .redis()
            .command(redis::cmd("ZRANGE").arg(&key).arg(0).arg(-1))
            .await?;
        let windows = starts
            .into_iter()
            .filter_map(|start| self.length().window_starting(start));
        let windows: Vec<Window> = windows.collect();
        let counts = self.store.late(&windows).await?;
        let (late, gone): (Vec<_>, Vec<_>) = windows.into_iter().zip(counts).partition(|(_, ids)| *ids > 0);
        if !gone.is_empty() {
            let mut zrem = redis::cmd("ZREM");
            zrem.arg(&key);
            for (window, _) in gone {
                zrem.arg(window.start());
            }
            self.store.redis().command::<u64>(&zrem).await?;
        }
        Ok(late)
    }

    /// The window with which the first reporter of all began: without a report it began in vain, but what has passed since is due.
    async fn from(&self, now_ms: u64) -> RedisResult<Option<Window>> {
        let begin = ledger::begin(self.length(), self.with_ids().await?.noted.keys().copied(), now_ms);
        let script = Script::new(NOTE_BEGIN);
        let mut note = script.key(self.store.keys.reports_from(self.length()));
        let began: u64 = self.store.redis().script(note.arg(begin.start())).await?;
        Ok(self.length().window_starting(began))
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
            let mut script = self.prepare.key(lease.key());
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
            let mut script = self.record.key(lease.key());
            script
                .key(self.store.keys.reports(self.length()))
                .key(self.store.keys.reports_pending(self.length()))
                .key(self.store.keys.callbacks())
                .key(self.store.keys.reports_open(self.length()))
                .key(self.store.keys.reports_progress(self.length()))
                .arg(lease.holder());
            for Change { record, report } in changes {
                script.arg(record.window.start()).arg(report.to_json());
                script.arg(u8::from(!report.is_final));
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
        let mut script = self.finish.key(lease.key());
        script
            .key(self.store.keys.reports(self.length()))
            .key(self.store.keys.reports_pending(self.length()))
            .key(self.store.keys.reports_open(self.length()))
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

    /// Looks for ids in windows that nobody expects them in, at `now_ms`. Those of final windows are put aside, also when some of their
    /// sets fail. `ledger` is what the leader knew when the search began: what was past then is past still.
    pub async fn sweep(&self, ledger: &Ledger, now_ms: u64) -> Swept {
        let mut swept = Swept::default();
        if let Err(error) = self.search(ledger, now_ms, &mut swept).await {
            tracing::warn!("cannot search for ids that came too late: {error}");
        }
        match self.trim(ledger.first_open(), now_ms).await {
            Ok(0) => {}
            Ok(reports) => tracing::info!(reports, "removed old reports"),
            Err(error) => tracing::warn!("cannot remove old reports: {error}"),
        }
        swept
    }

    async fn search(&self, ledger: &Ledger, now_ms: u64, swept: &mut Swept) -> RedisResult<()> {
        let with_ids = self.with_ids().await?;
        swept.most_partitions = with_ids.most_partitions;
        self.find_ahead(&with_ids, now_ms, swept).await?;
        let past = with_ids.noted.keys().copied().filter(|window| ledger.is_past(*window));
        let past: Vec<Window> = past.collect();
        let reports = self.store.reports(&past).await?;
        let mut late = Vec::new();
        for (window, report) in past.into_iter().zip(reports) {
            match ledger.stray(window, report.as_ref(), now_ms) {
                Stray::TooLate => late.push(window),
                Stray::Unreported => swept.unreported.push(window),
                Stray::Watched => {}
            }
        }
        let mut put_aside = Ok(());
        for windows in late.chunks(BATCH) {
            // Most of them have none any more: they are final as they should be.
            let counts = self.store.counts_left(windows).await?;
            let left = windows.iter().copied().zip(counts).filter(|(_, left)| *left > 0);
            let left: Vec<Window> = left.map(|(window, _)| window).collect();
            if !left.is_empty() {
                self.note_late(&left).await?;
                let (moved, result) = self.store.put_aside(&left).await;
                let moved = left.iter().copied().zip(moved);
                swept.late.extend(moved.filter(|(_, ids)| *ids > 0));
                if result.is_err() {
                    put_aside = put_aside.and(result);
                    continue;
                }
            }
            self.forget_ids(&with_ids, windows).await?;
        }
        put_aside?;
        // Also those that were put aside before somebody died.
        let late = self.late().await?;
        let windows: Vec<Window> = late.iter().map(|(window, _)| *window).collect();
        let told = late.into_iter().zip(self.store.reports(&windows).await?);
        let news = told.filter_map(|((window, ids), report)| ledger.late(window, &report?, ids));
        swept.news.extend(news);
        Ok(())
    }

    /// Finds windows that have not begun, and keeps their ids until they are due, unless they are so far ahead that their host's clock cannot
    /// have been meant.
    async fn find_ahead(&self, with_ids: &WithIds, now_ms: u64, swept: &mut Swept) -> RedisResult<()> {
        let ahead = |window: &Window| Duration::from_secs(window.start()).saturating_sub(Duration::from_millis(now_ms));
        swept.ahead = with_ids
            .noted
            .keys()
            .copied()
            .filter(|window| ahead(window) > AHEAD)
            .collect();
        let near = swept.ahead.iter().copied();
        let near: Vec<Window> = near.filter(|window| ahead(window).as_secs() <= AHEAD_SECONDS).collect();
        let kept = |window: Window| ahead(&window) + Duration::from_secs(window.length().seconds()) + IDS_KEPT;
        self.store.keep_ids(&near, kept).await
    }

    /// Removes reports that need not be kept, and answers how many: those older than [`ledger::KEPT`], and than `first_open`, from which on there are
    /// some that may change. The newest stays, to be gone on from.
    async fn trim(&self, first_open: Window, now_ms: u64) -> RedisResult<u64> {
        let old = self
            .length()
            .window_at_ms(now_ms.saturating_sub(ledger::KEPT.as_millis() as u64));
        let newest = self
            .progress(progress::NEWEST)
            .await?
            .and_then(|start| self.length().window_starting(start));
        let Some(until) = [Some(old), Some(first_open), newest].into_iter().min().flatten() else {
            return Ok(0);
        };
        let trimmed = self.progress(progress::TRIMMED).await?;
        let (windows, until) = match trimmed.and_then(|start| self.length().window_starting(start)) {
            Some(trimmed) => {
                let old = std::iter::successors(Some(trimmed), |window| Some(window.next()));
                let old = old.take_while(|window| *window < until).take(TRIMMED_AT_ONCE);
                let old: Vec<Window> = old.collect();
                let until = old.last().map_or(trimmed, |last| last.next());
                (old, until)
            }
            None => {
                let mut old = Vec::new();
                self.each_report(|window, report| old.extend((window < until && report.is_final).then_some(window)))
                    .await?;
                (old, until)
            }
        };
        if trimmed == Some(until.start()) {
            return Ok(0);
        }
        let mut removed = 0;
        for windows in windows.chunks(BATCH) {
            let mut hdel = redis::cmd("HDEL");
            hdel.arg(self.store.keys.reports(self.length()));
            for window in windows {
                hdel.arg(window.start());
            }
            removed += self.store.redis().command::<u64>(&hdel).await?;
        }
        self.set_progress(progress::TRIMMED, until.start()).await?;
        Ok(removed)
    }
}

/// The windows that have ids.
#[derive(Debug, Default)]
struct WithIds {
    /// As it is noted: each member with its score.
    noted: BTreeMap<Window, Vec<(String, String)>>,
    /// How many partitions there are, if there are more than are counted.
    most_partitions: Option<u16>,
}
