//! The leader's searches beside reporting.
//!
//! They find ids in windows in which none are expected, by the index of windows that have ids.

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use redis::{RedisResult, Script};
use tokio::time::Instant;
use verve_protocol::Window;
use verve_protocol::keys::{AHEAD_SECONDS, INDEX_SECONDS, read_indexed};
use verve_protocol::scripts::{FORGET_WINDOWS, NOTE_LATE};

use super::RedisReportStore;
use crate::windows::ledger::{IDS_KEPT, Ledger, Orphaned};
use crate::windows::ports::{BATCH, Swept};

/// How far ahead a window with ids must be to be logged.
/// Clocks always differ a little.
const AHEAD: Duration = Duration::from_secs(5);

/// How long an index entry must stay unchanged until it is removed.
/// The length of a window is added to this. An instance adds its window to the index once, and
/// counts ids for it as long as the window lasts by the instance's clock, which may be set back
/// meanwhile.
const INDEXED: Duration = Duration::from_secs(60);

/// Since when each index entry has had its score, as far as this process has seen.
#[derive(Debug, Default)]
pub(super) struct Unchanged(Mutex<BTreeMap<String, (String, Instant)>>);

impl Unchanged {
    /// Compares the index with its state at the last sweep.
    fn look(&self, with_ids: &WithIds) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = mem::take(&mut *seen);
        let now = Instant::now();
        for (member, score) in with_ids.noted.values().flatten() {
            let since = before.get(member).filter(|(before, _)| before == score);
            let since = since.map_or(now, |(_, since)| *since);
            seen.insert(member.clone(), (score.clone(), since));
        }
    }

    /// Returns whether an entry has had its score for at least `time`.
    fn is_so_for(&self, member: &str, time: Duration) -> bool {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(member).is_some_and(|(_, since)| since.elapsed() >= time)
    }
}

/// The windows that have ids.
#[derive(Debug, Default)]
pub(super) struct WithIds {
    /// The index entries: each member with its score.
    pub(super) noted: BTreeMap<Window, Vec<(String, String)>>,
    /// How many partitions hosts have, for windows with more than are counted.
    uncounted: BTreeMap<Window, u16>,
}

impl RedisReportStore {
    /// Reads the windows that have ids from the index.
    /// Each instance adds a window to the index with its own first id of the window.
    pub(super) async fn with_ids(&self) -> RedisResult<WithIds> {
        let mut found = WithIds::default();
        let read = |member: String, score: String| {
            let Some((window, partitions)) = read_indexed(&member, self.length()) else {
                tracing::error!("ignoring {member:?} among the windows that have ids, which is not readable");
                return;
            };
            if partitions > self.store.partitions().count() {
                let most = found.uncounted.entry(window).or_default();
                *most = partitions.max(*most);
            }
            found.noted.entry(window).or_default().push((member, score));
        };
        self.store
            .scan("ZSCAN", &self.store.keys.windows(self.length()), read)
            .await?;
        Ok(found)
    }

    /// Removes these windows from the index.
    /// An entry stays if an instance may still rely on it, or has renewed it since.
    async fn forget_ids(&self, with_ids: &WithIds, windows: &[Window], now_ms: u64) -> RedisResult<()> {
        let script = Script::new(FORGET_WINDOWS);
        let unchanged_for = Duration::from_secs(self.length().seconds()) + INDEXED;
        // No instance lives this long. Without this rule, entries would stay if each leader lived
        // too briefly to see them unchanged.
        let is_old = |window: &Window| (window.end() + INDEX_SECONDS) * 1000 < now_ms;
        let noted = windows.iter().flat_map(|window| {
            let noted = with_ids.noted.get(window).into_iter().flatten();
            noted.filter(move |(member, _)| is_old(window) || self.unchanged.is_so_for(member, unchanged_for))
        });
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

    /// Notes again which of these windows have ids kept apart as late ids.
    /// In a cluster, a failover of the node with the notes can lose the last ones, while the ids
    /// are on other nodes.
    async fn note_kept(&self, windows: &[Window]) -> RedisResult<()> {
        let kept = of_some(windows, self.store.late(windows).await?);
        match kept.is_empty() {
            true => Ok(()),
            false => self.note_late(&kept).await,
        }
    }

    /// Notes that ids of these windows are kept apart as late ids, or are about to be.
    async fn note_late(&self, windows: &[Window]) -> RedisResult<()> {
        let script = Script::new(NOTE_LATE);
        let mut note = script.key(self.store.keys.windows_late(self.length()));
        note.arg(INDEX_SECONDS);
        for window in windows {
            note.arg(window.start());
        }
        self.store.redis().script::<u8>(&note).await.map(drop)
    }

    /// Returns the windows with ids kept apart as late ids, and how many remain.
    /// Windows of which none remain are removed from the list.
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

    /// Searches for ids in windows in which none are expected.
    /// Those that came too late are kept apart as late ids.
    pub(super) async fn search(&self, ledger: &Ledger, now_ms: u64, swept: &mut Swept) -> RedisResult<()> {
        let mut with_ids = self.with_ids().await?;
        let mut uncounted = mem::take(&mut with_ids.uncounted);
        self.unchanged.look(&with_ids);
        self.find_ahead(&with_ids, now_ms, swept).await?;
        self.note_use(&with_ids, ledger, now_ms).await?;
        let past = with_ids.noted.keys().copied().filter(|window| ledger.is_past(*window));
        let past: Vec<Window> = past.collect();
        let reports = self.store.reports(&past).await?;
        let mut late = Vec::new();
        for (window, report) in past.into_iter().zip(reports) {
            match ledger.orphaned_ids(window, report.as_ref(), now_ms) {
                Orphaned::TooLate => late.push(window),
                Orphaned::Unreported => swept.unreported.push(window),
                Orphaned::Expected => {}
            }
        }
        let mut found = Ok(());
        for windows in late.chunks(BATCH) {
            // Most final windows have no ids left, as they should.
            let left = of_some(windows, self.store.counts_left(windows).await?);
            // The partitions of hosts no longer matter for windows without ids left.
            uncounted.retain(|window, _| !windows.contains(window) || left.contains(window));
            let mut result = self.note_kept(windows).await;
            if !left.is_empty() {
                self.note_late(&left).await?;
                let (moved, put_aside) = self.store.put_aside(&left).await;
                let moved = left.iter().copied().zip(moved);
                swept.late.extend(moved.filter(|(_, ids)| *ids > 0));
                result = result.and(put_aside);
            }
            match result {
                Ok(()) => self.forget_ids(&with_ids, windows, now_ms).await?,
                // The other windows are searched though a set of these cannot be read.
                Err(_) => found = found.and(result),
            }
        }
        swept.most_partitions = Some(uncounted.into_values().max());
        found?;
        // This includes ids that were kept apart before a leader died.
        let late = self.late().await?;
        let windows: Vec<Window> = late.iter().map(|(window, _)| *window).collect();
        let late = late.into_iter().zip(self.store.reports(&windows).await?);
        let revisions = late.filter_map(|((window, ids), report)| ledger.late(window, &report?, ids));
        swept.revisions.extend(revisions);
        swept.is_empty = with_ids.noted.is_empty() && swept.revisions.is_empty();
        Ok(())
    }

    /// Finds windows that have not begun, and keeps their ids until they are due.
    /// It does not keep the ids of windows so far ahead that their host's clock must be wrong.
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

    /// Notes that a named counter is in use until its newest window with ids.
    ///
    /// It may be registered earlier: by a host whose clock is ahead.
    async fn note_use(&self, with_ids: &WithIds, ledger: &Ledger, now_ms: u64) -> RedisResult<()> {
        let until = self.length().window_at_ms(now_ms + 1000 * AHEAD_SECONDS);
        let newest = with_ids.noted.range(..=until).next_back().map(|(window, _)| *window);
        let newest = newest.filter(|newest| *newest >= ledger.next_window());
        let (Some(name), Some(newest)) = (self.store.keys.counter(), newest) else {
            return Ok(());
        };
        let mut zadd = redis::cmd("ZADD");
        let key = self.store.keys.counters_in_use(self.length());
        zadd.arg(key).arg("XX").arg("GT").arg(newest.start());
        self.store
            .redis()
            .command::<u8>(zadd.arg(name.as_str()))
            .await
            .map(drop)
    }
}

/// Returns the windows with ids, by the number of ids of each.
fn of_some(windows: &[Window], ids: Vec<u64>) -> Vec<Window> {
    let some = windows.iter().copied().zip(ids).filter(|(_, ids)| *ids > 0);
    some.map(|(window, _)| window).collect()
}
