//! Reads and writes the leader's data in Redis.
//!
//! Each change of a report first checks the lease, in the same script.

mod kept;
mod search;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use redis::{RedisResult, Script, ScriptInvocation};
use verve_protocol::keys::progress;
use verve_protocol::scripts::{
    FINISH, NOTE_BEGIN, NOTE_PROGRESS, NOTE_REPORTS, PREPARE, RECORD_REPORTS, REMOVED, REOPEN, RETIRE_COUNTER,
    TRIM_REPORTS,
};
use verve_protocol::{CallbackJob, Report, Window, WindowLength, WindowRecord};

use super::WindowsConfig;
use super::ended::Ended;
use super::lease::Lease;
use super::ledger::{self, IDS_KEPT, Ledger, PendingRevision, RecordedRevision, Stored};
use super::pending::Pending;
use super::ports::{BATCH, ReportStore, Swept};
use crate::clock::RedisClock;
use crate::store::Store;
pub use kept::{KeepReports, REPORTS_KEPT, keep_reports};

/// Reports, statistics and sets in Redis.
pub struct RedisReportStore {
    config: WindowsConfig,
    store: Store,
    prepare: Script,
    record: Script,
    finish: Script,
    removed: Script,
    trim_reports: Script,
    unchanged: search::Unchanged,
}

impl RedisReportStore {
    /// Creates the report store in the Redis of `store`.
    pub fn new(config: WindowsConfig, store: Store) -> Self {
        Self {
            config,
            store,
            prepare: Script::new(PREPARE),
            record: Script::new(RECORD_REPORTS),
            finish: Script::new(FINISH),
            removed: Script::new(REMOVED),
            trim_reports: Script::new(TRIM_REPORTS),
            unchanged: search::Unchanged::default(),
        }
    }

    fn length(&self) -> WindowLength {
        self.config.length
    }

    async fn set_progress(&self, field: &str, value: u64) -> RedisResult<()> {
        let script = Script::new(NOTE_PROGRESS);
        let mut note = script.key(self.store.keys.reports_progress(self.length()));
        note.arg(field).arg(value);
        self.store.redis().script::<u8>(&note).await.map(drop)
    }

    /// Reads the steps that were begun and not finished.
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

    /// Notes the newest report and the open ones, and returns the newest window.
    /// Does nothing without a report.
    async fn note_reports(&self) -> RedisResult<Option<Window>> {
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
        // These are few: windows whose leader died before they were final.
        open.into_iter().for_each(|start| {
            note.arg(start);
        });
        self.store.redis().script::<u8>(&note).await?;
        self.store.newest(self.length()).await
    }

    /// Reads all reports, in batches.
    async fn each_report(&self, mut with: impl FnMut(Window, Report)) -> RedisResult<()> {
        let read = |start: String, json: String| match (self.window(&start), Report::from_json(&json)) {
            (Some(window), Ok(report)) => with(window, report),
            _ => tracing::error!("ignoring the report of {start}, which is not readable: {json}"),
        };
        self.store
            .scan("HSCAN", &self.store.keys.reports(self.length()), read)
            .await
    }

    fn window(&self, start: &str) -> Option<Window> {
        self.length().window_starting(start.parse().ok()?)
    }

    /// Returns the window where the very first reporter began.
    /// Even if that reporter reported nothing, all windows since then are due.
    async fn from(&self, now_ms: u64) -> RedisResult<Option<Window>> {
        let begin = ledger::begin(self.length(), self.with_ids().await?.noted.keys().copied(), now_ms);
        let script = Script::new(NOTE_BEGIN);
        let mut note = script.key(self.store.keys.reports_from(self.length()));
        let began: u64 = self.store.redis().script(note.arg(begin.start())).await?;
        Ok(self.length().window_starting(began))
    }

    /// Returns the window at which a named counter goes on.
    ///
    /// It was idle from `next` on. The window is the first one with ids that have not expired at
    /// `now_ms`. Without an index entry, it is that of the last registration: if older windows have
    /// ids nevertheless, a search finds them.
    async fn awake(&self, next: Window, now_ms: u64) -> RedisResult<Option<Window>> {
        let Some(name) = self.store.keys.counter() else {
            return Ok(None);
        };
        let mut zscore = redis::cmd("ZSCORE");
        zscore
            .arg(self.store.keys.counters_in_use(self.length()))
            .arg(name.as_str());
        let used: Option<f64> = self.store.redis().command(&zscore).await?;
        let used = used.map(|used_s| self.length().window_at_ms((used_s * 1000.0) as u64));
        let Some(used) = used.filter(|used| *used > next) else {
            return Ok(None);
        };
        let with_ids = self.with_ids().await?;
        let certain = ledger::window_certain_at(self.length(), now_ms);
        let first = with_ids.noted.range(next.max(certain)..).next();
        Ok(Some(first.map_or(used, |(window, _)| used.min(*window))))
    }

    fn job(&self, record: &WindowRecord) -> Option<CallbackJob> {
        let (endpoint, method) = self.config.callback.as_ref()?;
        Some(CallbackJob {
            // Only the reports of the unnamed counter are sent.
            counter: None,
            endpoint: endpoint.clone(),
            method: *method,
            window: record.window,
            revision: Some(record.revision),
        })
    }

    /// Runs a script that changes data only while this replica holds the lease.
    async fn as_leader(&self, script: &ScriptInvocation<'_>) -> Result<(), Ended> {
        match self.store.redis().script::<u8>(script).await? {
            1 => Ok(()),
            _ => Err(Ended::LeaseLost),
        }
    }
}

impl ReportStore for RedisReportStore {
    type Lease = Lease;

    async fn clock(&self) -> RedisResult<RedisClock> {
        self.store.clock().await
    }

    async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    async fn counts(&self, windows: &[Window]) -> RedisResult<Vec<u64>> {
        self.store.counts(windows).await
    }

    async fn close(&self, windows: &[Window]) -> RedisResult<Vec<u64>> {
        self.store.close(windows).await
    }

    async fn load(&self, known: Option<&Ledger>, now_ms: u64) -> RedisResult<Stored> {
        let mut newest = self.store.newest(self.length()).await?;
        if newest.is_none() {
            newest = self.note_reports().await?;
        }
        let mut stored = Stored {
            newest,
            pending: self.pending().await?,
            kept_ms: self.store.progress(self.length(), progress::KEPT).await?,
            ..Stored::default()
        };
        let Some(newest) = newest else {
            stored.from = self.from(now_ms).await?;
            // No report can be of an earlier window.
            let certain = ledger::window_certain_at(self.length(), now_ms);
            let first = stored.from.map_or(certain, |from| from.min(certain));
            self.set_progress(progress::TRIMMED, first.start()).await?;
            return Ok(stored);
        };
        let was_idle = known.and_then(Ledger::idle_from) == Some(newest.next());
        let idle = self.store.progress(self.length(), progress::IDLE).await?;
        if was_idle || idle >= Some(newest.next().start()) {
            stored.awake = self.awake(newest.next(), now_ms).await?;
        }
        // So far, the only reports may be of windows before `from` that had ids.
        let mut from = redis::cmd("GET");
        from.arg(self.store.keys.reports_from(self.length()));
        let from: Option<u64> = self.store.redis().command(&from).await?;
        stored.from = from.and_then(|start| self.length().window_starting(start));
        let mut open = redis::cmd("ZRANGE");
        open.arg(self.store.keys.reports_open(self.length())).arg(0).arg(-1);
        let open: Vec<u64> = self.store.redis().command(&open).await?;
        let open = open
            .into_iter()
            .filter_map(|start| self.length().window_starting(start));
        // Also windows that were reported before they ended, because the clock was ahead for a
        // while.
        let early = std::iter::successors(Some(newest), |window| window.previous());
        let early = early.take_while(|window| *window == newest || window.end_ms() > now_ms);
        let known = known.map(Ledger::known).unwrap_or_default();
        let windows: BTreeSet<Window> = open.chain(early).chain(known).collect();
        let windows: Vec<Window> = windows.into_iter().collect();
        let reports = windows.iter().copied().zip(self.store.reports(&windows).await?);
        stored.reports = reports.filter_map(|(window, report)| Some((window, report?))).collect();
        Ok(stored)
    }

    async fn keep(&self, ledger: &Ledger, now_ms: u64) -> RedisResult<()> {
        let mut windows = ledger.ended(now_ms);
        windows.extend(ledger.needed());
        self.store.keep_ids(&windows, |_| IDS_KEPT).await?;
        self.set_progress(progress::KEPT, now_ms).await
    }

    async fn reopen(&self, lease: &Lease, stored: &Stored, windows: &[Window]) -> Result<(), Ended> {
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
            self.as_leader(&reopen).await?;
        }
        Ok(())
    }

    async fn records(&self, revisions: &[PendingRevision]) -> RedisResult<Vec<WindowRecord>> {
        let windows: Vec<Window> = revisions.iter().map(|revision| revision.window).collect();
        let stats = self.store.requests(&windows).await?;
        let record = |(revision, [requests, duplicates]): (&PendingRevision, [u64; 2])| WindowRecord {
            window: revision.window,
            count: revision.count,
            revision: revision.revision,
            requests: requests.max(revision.before[0]),
            duplicates: duplicates.max(revision.before[1]),
            late: revision.late,
        };
        Ok(revisions.iter().zip(stats).map(record).collect())
    }

    async fn prepare(&self, lease: &Lease, records: &[WindowRecord]) -> Result<(), Ended> {
        for records in records.chunks(BATCH) {
            let mut script = self.prepare.key(lease.key());
            script.key(self.store.keys.reports_pending(self.length()));
            script.arg(lease.holder()).arg(ledger::STEPS_KEPT.as_secs());
            for record in records {
                script
                    .arg(record.window.start())
                    .arg(Pending::publish(record).to_json());
            }
            self.as_leader(&script).await?;
        }
        Ok(())
    }

    async fn record(&self, lease: &Lease, changes: &[RecordedRevision]) -> Result<(), Ended> {
        for changes in changes.chunks(BATCH) {
            let mut script = self.record.key(lease.key());
            script
                .key(self.store.keys.reports(self.length()))
                .key(self.store.keys.reports_pending(self.length()))
                .key(self.store.keys.callbacks())
                .key(self.store.keys.reports_open(self.length()))
                .key(self.store.keys.reports_progress(self.length()))
                .arg(lease.holder());
            for RecordedRevision { record, report } in changes {
                script.arg(record.window.start()).arg(report.to_json());
                script.arg(u8::from(!report.is_final));
                let fields = self.job(record).map_or_else(Vec::new, |job| job.to_fields());
                script.arg(fields.len() * 2);
                for (name, value) in fields {
                    script.arg(name).arg(value);
                }
            }
            self.as_leader(&script).await?;
        }
        Ok(())
    }

    async fn finish(&self, lease: &Lease, finals: &[(Window, Report)]) -> Result<(), Ended> {
        let mut script = self.finish.key(lease.key());
        script
            .key(self.store.keys.reports(self.length()))
            .key(self.store.keys.reports_pending(self.length()))
            .key(self.store.keys.reports_open(self.length()))
            .key(self.store.keys.reports_progress(self.length()))
            .arg(lease.holder())
            .arg(ledger::STEPS_KEPT.as_secs())
            .arg(Pending::Remove.to_json());
        for (window, report) in finals {
            script.arg(window.start()).arg(report.to_json());
        }
        self.as_leader(&script).await
    }

    async fn remove(&self, windows: &[Window]) -> RedisResult<()> {
        self.store.remove_closed(windows).await?;
        let mut script = self.removed.key(self.store.keys.reports_pending(self.length()));
        script.arg(Pending::Remove.to_json());
        for window in windows {
            script.arg(window.start());
        }
        self.store.redis().script::<u8>(&script).await.map(drop)
    }

    async fn retire(&self, lease: &Lease, used_ms: u64, next: Window) -> Result<(), Ended> {
        let Some(name) = self.store.keys.counter() else {
            return Ok(());
        };
        let script = Script::new(RETIRE_COUNTER);
        let mut retire = script.key(lease.key());
        retire.key(self.store.keys.counters_in_use(self.length()));
        retire.key(self.store.keys.reports_progress(self.length()));
        retire.key(self.store.keys.windows(self.length()));
        retire
            .arg(lease.holder())
            .arg(name.as_str())
            .arg((used_ms + 1) as f64 / 1000.0);
        retire.arg(next.start());
        self.as_leader(&retire).await
    }

    async fn sweep(&self, ledger: &Ledger, now_ms: u64) -> Swept {
        let mut swept = Swept::default();
        if let Err(error) = self.search(ledger, now_ms, &mut swept).await {
            tracing::warn!("cannot search for ids that came too late: {error}");
        }
        match self.trim_old(ledger.first_open(), now_ms).await {
            Ok(0) => {}
            Ok(reports) => tracing::info!(reports, "removed old reports"),
            Err(error) => tracing::warn!("cannot remove old reports: {error}"),
        }
        swept
    }
}
