//! The reported windows and the next step. Pure: no I/O, no clock.
//!
//! The model in `model` drives the same code. A record passes through four states, and each
//! transition is one step of the leader:
//! 1. counted, and found to be a revision to publish: [`Ledger::plan`]
//! 2. `pending`: stored in Redis, so that this leader or the next one publishes it unchanged
//! 3. `acknowledged`: Kafka has it, and Redis does not know yet
//! 4. `watched`: recorded, and counted again until its allowed lateness is over
//!
//! Then the window is closed: its sets are renamed to closed sets, to which no ids are added, and
//! counted for the last time. Once that count is reported, the window is final, and its closed sets
//! are removed. Ids that are added to its sets after that came too late: they are kept apart as
//! late ids, and a last record reports their number.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use verve_protocol::keys::UNREPORTED_SECONDS;
use verve_protocol::{Report, Window, WindowLength, WindowRecord};

use super::pending::Pending;
use crate::clock::millis;

/// How long reports are kept after the end of their window: a week.
pub const KEPT: Duration = Duration::from_secs(7 * 86_400);

/// How long ids are kept after their window ends or the leader renews their expiry.
pub const IDS_KEPT: Duration = Duration::from_secs(UNREPORTED_SECONDS);

/// A window whose ids may expire within this time already counts as lost.
/// This is longer than a leader takes from loading its state to its first count.
const LOST_BEFORE: Duration = Duration::from_secs(60);

/// How many final reports a leader remembers, in case Redis loses them.
/// With windows of one minute, these cover sixteen hours.
const REMEMBERED: usize = 1000;

/// When windows are reported, and how long they are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Schedule {
    /// The time from a window's end to its first report.
    pub grace: Duration,
    /// The allowed lateness: how long after its first report late ids correct a window.
    pub late: Duration,
}

/// The state in Redis when a leader begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stored {
    /// The reports that a leader needs.
    /// These are the reports of the newest window, of windows that are not final, and of windows
    /// that this replica knows.
    pub reports: BTreeMap<Window, Report>,
    /// The newest window that has a report.
    pub newest: Option<Window>,
    /// The steps that were begun and not finished.
    pub pending: BTreeMap<Window, Pending>,
    /// The window where a reporter began that has reported nothing, see [`begin`].
    pub from: Option<Window>,
    /// When a leader last renewed the expiry of ids it needed, in Unix milliseconds.
    pub kept_ms: Option<u64>,
}

impl Stored {
    /// Reopens final windows that have not ended at `now_ms`, and returns them.
    /// Such windows exist if the clock was ahead for a while.
    pub fn reopen(&mut self, now_ms: u64) -> Vec<Window> {
        let mut early = Vec::new();
        for (window, report) in &mut self.reports {
            if report.is_final && window.end_ms() > now_ms {
                report.is_final = false;
                early.push(*window);
            }
        }
        // Their sets are needed again, so they must not be removed.
        self.pending
            .retain(|window, pending| *pending != Pending::Remove || !early.contains(window));
        early
    }

    /// Returns the first window whose ids are certainly in Redis at `now_ms`.
    fn first_kept(&self, length: WindowLength, now_ms: u64) -> Window {
        let certain_ms = now_ms.saturating_sub(millis(IDS_KEPT - LOST_BEFORE));
        match self.kept_ms {
            // The leader renewed the expiry of the ids of windows that had ended by then.
            // The ids of windows that ended later expire later.
            Some(kept_ms) if kept_ms > certain_ms => length.window_at_ms(0),
            _ => window_certain_at(length, now_ms),
        }
    }
}

/// The reported windows, and what is due next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ledger {
    schedule: Schedule,
    /// The first window not reported yet.
    next: Window,
    /// The first window that this process is responsible for.
    /// An earlier window without a report was never reported.
    first: Window,
    /// Windows before `first` that have ids and no report.
    orphaned: BTreeSet<Window>,
    pending: BTreeMap<Window, WindowRecord>,
    acknowledged: BTreeMap<Window, RecordedRevision>,
    watched: BTreeMap<Window, Report>,
    /// The newest final reports, at most [`REMEMBERED`].
    /// A failover to a replica of Redis may have lost them.
    finals: BTreeMap<Window, Report>,
    /// Watched windows that were final, and whose report Redis has lost.
    recounted: BTreeSet<Window>,
    removals: BTreeSet<Window>,
}

/// A record that Kafka has acknowledged, and the report that records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordedRevision {
    pub record: WindowRecord,
    pub report: Report,
}

/// The leader's next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Record in Redis what Kafka has; then call [`Ledger::recorded`].
    Record(Vec<RecordedRevision>),
    /// Publish the pending records; then call [`Ledger::acknowledged`].
    /// Call it once Kafka has all of them.
    Publish(Vec<WindowRecord>),
    /// Remove the closed sets of final windows; then call [`Ledger::removed`].
    Remove(Vec<Window>),
    /// Count these windows; then call [`Ledger::plan`].
    Count(Vec<Window>),
}

/// A revision of a window that is to be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PendingRevision {
    pub window: Window,
    pub count: u64,
    pub revision: u64,
    /// How many ids came too late.
    pub late: u64,
    /// Requests and duplicates as last reported, for expired statistics.
    pub before: [u64; 2],
}

/// What to do after a count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The revisions to store as pending; then call [`Ledger::prepared`].
    pub news: Vec<PendingRevision>,
    /// Windows whose allowed lateness is over.
    /// Close them and count them for the last time; then call [`Ledger::plan_closed`].
    pub over: Vec<Window>,
    /// Windows to be recorded as final again, without being closed; then call [`Ledger::finished`].
    ///
    /// They have fewer ids than were reported. Those may have come too late, and a sweep finds
    /// them.
    pub finals: Vec<(Window, Report)>,
}

/// What to do after the last count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastPlan {
    /// Revisions with ids that arrived at the last moment.
    /// Store them as pending; then call [`Ledger::prepared`].
    pub news: Vec<PendingRevision>,
    /// Windows whose last count is reported, each with its final report.
    /// Record them as final; then call [`Ledger::finished`].
    pub finals: Vec<(Window, Report)>,
}

/// Windows that can no longer be reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    pub first: Window,
    pub last: Window,
    pub windows: u64,
}

/// What to do about ids in a past window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orphaned {
    /// The ids came too late: the window is final, or it has no report and cannot be counted.
    TooLate,
    /// Redis has no report of the window: count it.
    /// The window was never reported, or Redis has lost the report.
    Unreported,
    /// Another replica watches it, or it is not due by a clock that was set back.
    Expected,
}

impl Ledger {
    /// Resumes after the last report, or where a reporter began that reported nothing.
    /// Windows so old that their ids may have expired are lost, and are returned as [`Lost`].
    /// `known` is what this replica last knew.
    pub fn resume(
        length: WindowLength,
        schedule: Schedule,
        mut stored: Stored,
        known: Option<&Self>,
        now_ms: u64,
    ) -> (Self, Option<Lost>) {
        let certain = window_certain_at(length, now_ms);
        let in_redis: BTreeSet<Window> = stored.reports.keys().copied().collect();
        let acknowledged = known.map_or_else(BTreeMap::new, |known| known.remind(&mut stored, certain));
        let current = length.window_at_ms(now_ms);
        let first_kept = stored.first_kept(length, now_ms);
        let reported = stored.reports.last_key_value().map(|(newest, _)| *newest);
        let gone_on_from = known.and_then(|known| known.next.previous());
        let newest = reported.max(stored.newest).max(gone_on_from);
        // Windows before a pending record are already reported or pending, so resume after it. The
        // newest report does not show that: it may be of a window long ago that had ids.
        let publishing = stored
            .pending
            .iter()
            .filter(|(window, pending)| pending.record(**window).is_some());
        let begun = publishing.map(|(window, _)| *window).max();
        // If Redis has no report at all, but this process knows some, resume after those, even if
        // Redis has begun anew at a later window.
        let from = stored.from.filter(|_| stored.newest.is_some());
        let next = match newest.max(begun) {
            Some(newest) => from.into_iter().fold(newest.next(), Window::max),
            None => stored.from.unwrap_or(current),
        };
        let lost = (next < first_kept).then(|| Lost {
            first: next,
            last: first_kept.previous().unwrap_or(next),
            windows: (first_kept.start() - next.start()) / length.seconds(),
        });
        let next = next.max(first_kept);
        let mut ledger = Self {
            schedule,
            next,
            // This process is not responsible for skipped windows either. If they were lost only by
            // a wrong clock, they are reported later.
            first: known.filter(|_| lost.is_none()).map_or(next, |known| known.first),
            orphaned: BTreeSet::new(),
            pending: BTreeMap::new(),
            acknowledged,
            watched: BTreeMap::new(),
            finals: known.map_or_else(BTreeMap::new, |known| known.finals.clone()),
            recounted: BTreeSet::new(),
            removals: BTreeSet::new(),
        };
        for (window, pending) in stored.pending {
            match (pending.record(window), pending) {
                (Some(record), _) => drop(ledger.pending.insert(window, record)),
                (None, _) => drop(ledger.removals.insert(window)),
            }
        }
        let is_lost = |window: &Window| known.is_some_and(|known| known.has_lost(*window, &in_redis));
        for (window, report) in stored.reports {
            ledger.reported(window, report);
        }
        let recounted = ledger.watched.keys().copied().filter(is_lost).collect();
        ledger.recounted = recounted;
        (ledger, lost)
    }

    /// Returns whether a window was final, and Redis has no report of it.
    fn has_lost(&self, window: Window, in_redis: &BTreeSet<Window>) -> bool {
        let was_final = self.finals.contains_key(&window) || self.recounted.contains(&window);
        was_final && !in_redis.contains(&window)
    }

    /// Takes over the report of a window.
    fn reported(&mut self, window: Window, report: Report) {
        if report.is_final {
            self.watched.remove(&window);
            self.recounted.remove(&window);
            self.finals.insert(window, report);
            if self.finals.len() > REMEMBERED {
                self.finals.pop_first();
            }
        } else {
            self.finals.remove(&window);
            self.watched.insert(window, report);
        }
    }

    /// Adds to `stored` what this ledger knows and Redis does not.
    ///
    /// Redis may have lost its data, or a failover may have led to a replica of Redis without all
    /// of it. A window whose last report Redis lacks is counted again, and so made final there,
    /// unless it is before `certain`: Redis does not keep reports for ever either. Returns the
    /// revisions that Kafka has acknowledged and no replica has recorded, and removes them from the
    /// pending steps.
    fn remind(&self, stored: &mut Stored, certain: Window) -> BTreeMap<Window, RecordedRevision> {
        let Stored { reports, pending, .. } = stored;
        let mut acknowledged = BTreeMap::new();
        let finals = self.finals.range(certain..).chain(&self.watched);
        let mut known: BTreeMap<Window, Report> = finals.map(|(window, report)| (*window, *report)).collect();
        for (window, change) in &self.acknowledged {
            if pending.get(window) == Some(&Pending::publish(&change.record)) {
                pending.remove(window);
                acknowledged.insert(*window, *change);
            } else {
                known.insert(*window, change.report);
            }
        }
        for (window, known) in known {
            let before = reports.get(&window).copied();
            if before.is_some_and(|before| before.revision >= known.revision) {
                continue;
            }
            // What Redis has no report of is counted again. What is final there was closed.
            let is_final = known.is_final && before.is_some_and(|before| before.is_final);
            let count = before.map_or(known.count, |before| known.count.max(before.count));
            reports.insert(
                window,
                Report {
                    count,
                    is_final,
                    ..known
                },
            );
        }
        acknowledged
    }

    /// Returns the next step at `now_ms`. Steps that were begun come first.
    /// A count includes at most `limit` due windows, and watched windows only if `watch` is set.
    pub fn step(&self, now_ms: u64, limit: usize, watch: bool) -> Step {
        if self.owes_recording() {
            Step::Record(self.acknowledged.values().copied().collect())
        } else if !self.pending.is_empty() {
            Step::Publish(self.pending.values().copied().collect())
        } else if !self.removals.is_empty() {
            Step::Remove(self.removals.iter().copied().collect())
        } else {
            let mut windows = self.due(now_ms, limit);
            windows.extend(self.watched.keys().filter(|_| watch));
            Step::Count(windows)
        }
    }

    /// Returns whether Kafka has records that Redis does not know of.
    pub fn owes_recording(&self) -> bool {
        !self.acknowledged.is_empty()
    }

    /// Returns the windows that are due at `now_ms`, oldest first, at most `limit`.
    pub fn due(&self, now_ms: u64, limit: usize) -> Vec<Window> {
        let closed = |window: &Window| self.due_ms(*window) <= now_ms;
        let in_order = std::iter::successors(Some(self.next), |window| Some(window.next())).take_while(closed);
        self.orphaned.iter().copied().chain(in_order).take(limit).collect()
    }

    /// Returns when the next window is due, in Unix milliseconds.
    pub fn next_due_ms(&self) -> u64 {
        self.due_ms(self.next)
    }

    /// Returns the windows whose reports it knows. Others may have changed them since.
    pub fn known(&self) -> Vec<Window> {
        let last = self.next.previous();
        let reported = self.watched.keys().chain(self.finals.keys());
        let known = reported.chain(self.acknowledged.keys()).copied();
        known.chain(last).collect()
    }

    /// Returns the windows that have ended at `now_ms` and are not reported.
    /// They may be due or not.
    pub fn ended(&self, now_ms: u64) -> Vec<Window> {
        self.due(now_ms.saturating_add(millis(self.schedule.grace)), usize::MAX)
    }

    /// Returns the first window whose report a count may still change.
    /// An older report changes only if ids came too late.
    pub fn first_open(&self) -> Window {
        self.watched
            .keys()
            .chain(self.pending.keys())
            .copied()
            .fold(self.next, Window::min)
    }

    /// Adds windows that have ids and no report in Redis, to count them.
    /// Skips a window whose reporting has begun meanwhile. For a window that was reported, only a
    /// higher count is published.
    pub fn add_orphaned(&mut self, windows: &[Window]) {
        let past: Vec<Window> = windows.iter().copied().filter(|window| self.is_past(*window)).collect();
        for window in past {
            match self.finals.get(&window).copied() {
                Some(report) => {
                    let is_final = false;
                    self.reported(window, Report { is_final, ..report });
                    self.recounted.insert(window);
                }
                None => drop(self.orphaned.insert(window)),
            }
        }
    }

    /// Returns the windows whose ids are still needed, except those that are only due.
    pub fn needed(&self) -> Vec<Window> {
        self.pending.keys().chain(self.watched.keys()).copied().collect()
    }

    /// Returns what to do about windows with these counts of unique ids at `now_ms`.
    pub fn plan(&self, counts: impl IntoIterator<Item = (Window, u64)>, now_ms: u64) -> Plan {
        let mut plan = Plan::default();
        for (window, count) in counts {
            match (self.news(window, count), self.watched.get(&window)) {
                (Some(news), _) => plan.news.push(news),
                (None, Some(report)) if self.recounted.contains(&window) && count < report.count => {
                    let is_final = true;
                    plan.finals.push((window, Report { is_final, ..*report }));
                }
                (None, Some(report)) if now_ms >= self.final_ms(window, report) => plan.over.push(window),
                (None, _) => {}
            }
        }
        plan
    }

    /// Returns what to do about closed windows with these counts of unique ids.
    pub fn plan_closed(&self, counts: impl IntoIterator<Item = (Window, u64)>) -> LastPlan {
        let mut plan = LastPlan::default();
        for (window, count) in counts {
            match (self.news(window, count), self.watched.get(&window)) {
                (Some(news), _) => plan.news.push(news),
                (None, Some(report)) => plan.finals.push((
                    window,
                    Report {
                        is_final: true,
                        ..*report
                    },
                )),
                (None, None) => {}
            }
        }
        plan
    }

    fn news(&self, window: Window, count: u64) -> Option<PendingRevision> {
        let before = self.watched.get(&window);
        let revision = match before {
            None => 0,
            Some(report) if count > report.count => report.revision + 1,
            // Ids do not leave a set: a smaller count means that Redis lost some, and the report
            // stays true.
            Some(_) => return None,
        };
        Some(PendingRevision {
            window,
            count,
            revision,
            late: 0,
            before: before.map(before_of).unwrap_or_default(),
        })
    }

    /// Returns the revision to publish if `ids` came too late for a past window.
    /// `report` is the window's report in Redis.
    pub fn late(&self, window: Window, report: &Report, ids: u64) -> Option<PendingRevision> {
        (self.is_past(window) && report.is_final && ids > report.late).then_some(PendingRevision {
            window,
            count: report.count,
            revision: report.revision + 1,
            late: ids,
            before: before_of(report),
        })
    }

    /// Notes that these records are stored as pending.
    pub fn prepared(&mut self, records: impl IntoIterator<Item = WindowRecord>) {
        self.pending
            .extend(records.into_iter().map(|record| (record.window, record)));
    }

    /// Notes that Kafka has the pending records, at `now_ms`.
    pub fn acknowledged(&mut self, now_ms: u64) {
        for (window, record) in std::mem::take(&mut self.pending) {
            let report = Report {
                count: record.count,
                revision: record.revision,
                time: now_ms,
                first: self.watched.get(&window).map_or(now_ms, |report| report.first),
                requests: record.requests,
                duplicates: record.duplicates,
                late: record.late,
                // Only a final window has ids that came too late.
                is_final: record.late > 0,
            };
            self.acknowledged.insert(window, RecordedRevision { record, report });
        }
    }

    /// Notes that the acknowledged revisions are recorded.
    pub fn recorded(&mut self) {
        for (window, change) in std::mem::take(&mut self.acknowledged) {
            self.reported(window, change.report);
            self.orphaned.remove(&window);
            self.next = self.next.max(window.next());
        }
    }

    /// Notes that a window is final. Its closed sets still exist.
    pub fn finished(&mut self, window: Window) {
        if let Some(report) = self.watched.get(&window).copied() {
            let is_final = true;
            self.reported(window, Report { is_final, ..report });
        }
        self.removals.insert(window);
    }

    /// Notes that the closed sets of these windows are removed.
    pub fn removed(&mut self, windows: &[Window]) {
        for window in windows {
            self.removals.remove(window);
        }
    }

    /// Returns whether `window` needs no more work, so that it should have no ids.
    pub fn is_past(&self, window: Window) -> bool {
        window < self.next
            && !self.watched.contains_key(&window)
            && !self.orphaned.contains(&window)
            && !self.pending.contains_key(&window)
            && !self.acknowledged.contains_key(&window)
            && !self.removals.contains(&window)
    }

    /// Returns what to do about ids in a past window with this report in Redis.
    pub fn orphaned_ids(&self, window: Window, report: Option<&Report>, now_ms: u64) -> Orphaned {
        if self.due_ms(window) > now_ms {
            return Orphaned::Expected;
        }
        let are_all_there = window >= window_certain_at(window.length(), now_ms);
        let is_unknown = window < self.first || self.finals.contains_key(&window);
        if report.is_none() && is_unknown && are_all_there {
            return Orphaned::Unreported;
        }
        match report {
            Some(report) if !report.is_final => Orphaned::Expected,
            _ => Orphaned::TooLate,
        }
    }

    fn due_ms(&self, window: Window) -> u64 {
        window.end_ms() + millis(self.schedule.grace)
    }

    fn final_ms(&self, window: Window, report: &Report) -> u64 {
        self.due_ms(window)
            .max(report.first)
            .saturating_add(millis(self.schedule.late))
    }
}

/// Returns the window where the very first reporter begins at `now_ms`.
/// That is the oldest window with ids or the current one, whichever is earlier. A window whose ids
/// may have expired does not count: otherwise all windows since then would be reported, perhaps
/// half a century of them.
pub fn begin(length: WindowLength, with_ids: impl IntoIterator<Item = Window>, now_ms: u64) -> Window {
    let certain = window_certain_at(length, now_ms);
    let whole = with_ids.into_iter().filter(|window| *window >= certain);
    whole.fold(length.window_at_ms(now_ms), Window::min)
}

/// Returns the first window whose ids certainly last until they can be counted.
/// They have not expired at `now_ms`, whether or not a leader has renewed their expiry.
pub const fn window_certain_at(length: WindowLength, now_ms: u64) -> Window {
    length.window_at_ms(now_ms.saturating_sub((IDS_KEPT.as_millis() - LOST_BEFORE.as_millis()) as u64))
}

fn before_of(report: &Report) -> [u64; 2] {
    [report.requests, report.duplicates]
}

#[cfg(test)]
mod tests;
