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

mod resume;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use verve_protocol::keys::UNREPORTED_SECONDS;
use verve_protocol::{Report, Window, WindowLength, WindowRecord};

pub use self::resume::Stored;
use crate::clock::millis;

/// How long steps that were begun are kept: a week.
pub const STEPS_KEPT: Duration = Duration::from_secs(7 * 86_400);

/// How long ids are kept after their window ends or the leader renews their expiry.
pub const IDS_KEPT: Duration = Duration::from_secs(UNREPORTED_SECONDS);

/// A window whose ids may expire within this time already counts as lost.
/// This is longer than a leader takes from loading its state to its first count.
const LOST_BEFORE: Duration = Duration::from_secs(60);

/// How many final reports a leader remembers, in case Redis loses them.
/// With windows of one minute, these cover sixteen hours.
pub const REMEMBERED: usize = 1000;

/// How many final reports of a named counter a leader remembers.
/// There may be thousands of these counters.
pub const REMEMBERED_OF_NAMED: usize = 100;

/// When windows are reported, and how long they are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Schedule {
    /// The time from a window's end to its first report.
    pub grace: Duration,
    /// The allowed lateness: how long after its first report late ids correct a window.
    pub late: Duration,
    /// How many final reports are remembered.
    pub remembered: usize,
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
    /// The newest final reports, as many as are remembered.
    /// A failover to a replica of Redis may have lost them.
    finals: BTreeMap<Window, Report>,
    /// Watched windows that were final, and whose report Redis has lost.
    recounted: BTreeSet<Window>,
    removals: BTreeSet<Window>,
    /// The last window that is due even if it has no ids; `None` if all are.
    idle_after: Option<Window>,
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
    pub revisions: Vec<PendingRevision>,
    /// Windows whose allowed lateness is over.
    /// Close them and count them for the last time; then call [`Ledger::plan_closed`].
    pub over: Vec<Window>,
    /// Windows to be recorded as final again, without being closed.
    ///
    /// Then call [`Ledger::finished`]. They have fewer ids than were reported. Those may have come
    /// too late, and a sweep finds them.
    pub finals: Vec<(Window, Report)>,
}

/// What to do after the last count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastPlan {
    /// Revisions with ids that arrived at the last moment.
    /// Store them as pending; then call [`Ledger::prepared`].
    pub revisions: Vec<PendingRevision>,
    /// Windows whose last count is reported, each with its final report.
    /// Record them as final; then call [`Ledger::finished`].
    pub finals: Vec<(Window, Report)>,
}

/// What to do about ids in a past window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orphaned {
    /// The ids came too late.
    ///
    /// The window is final, or it has no report and cannot be counted.
    TooLate,
    /// Redis has no report of the window: count it.
    /// The window was never reported, or Redis has lost the report.
    Unreported,
    /// Another replica watches it, or it is not due by a clock that was set back.
    Expected,
}

impl Ledger {
    /// Takes over the report of a window.
    fn reported(&mut self, window: Window, report: Report) {
        if report.is_final {
            self.watched.remove(&window);
            self.recounted.remove(&window);
            self.finals.insert(window, report);
            if self.finals.len() > self.schedule.remembered {
                self.finals.pop_first();
            }
        } else {
            self.finals.remove(&window);
            self.watched.insert(window, report);
        }
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
        let in_order = std::iter::successors(Some(self.next), |window| Some(window.next()));
        let in_order = in_order.take_while(|window| closed(window) && !self.is_idle_in(*window));
        self.orphaned.iter().copied().chain(in_order).take(limit).collect()
    }

    /// Returns when the next window is due, in Unix milliseconds.
    /// `None` while the counter is idle.
    pub fn next_due_ms(&self) -> Option<u64> {
        (!self.is_idle_in(self.next)).then(|| self.due_ms(self.next))
    }

    /// Returns the first window that is not reported yet.
    pub const fn next_window(&self) -> Window {
        self.next
    }

    /// Returns the first window that is not due, if the counter is idle.
    pub fn idle_from(&self) -> Option<Window> {
        self.is_idle_in(self.next).then_some(self.next)
    }

    /// Returns whether the counter is idle, and all its windows are final.
    pub fn is_at_rest(&self) -> bool {
        let open = self.watched.is_empty() && self.orphaned.is_empty() && self.removals.is_empty();
        open && self.pending.is_empty() && self.acknowledged.is_empty() && self.is_idle_in(self.next)
    }

    /// Notes the last window that is due even if it has no ids; `None` if all are.
    pub fn is_idle_after(&mut self, window: Option<Window>) {
        self.idle_after = window;
    }

    /// Returns whether the counter was idle, and is used again.
    ///
    /// `idle_after` is now the last window that is due without ids. Then the leader resumes, since
    /// the windows in between are not due.
    pub fn is_awoken(&self, idle_after: Option<Window>) -> bool {
        self.is_idle_in(self.next) && idle_after.is_none_or(|last| self.next <= last)
    }

    fn is_idle_in(&self, window: Window) -> bool {
        self.idle_after.is_some_and(|last| last < window)
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
            match (self.pending_revision(window, count), self.watched.get(&window)) {
                (Some(revision), _) => plan.revisions.push(revision),
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
            match (self.pending_revision(window, count), self.watched.get(&window)) {
                (Some(revision), _) => plan.revisions.push(revision),
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

    fn pending_revision(&self, window: Window, count: u64) -> Option<PendingRevision> {
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
