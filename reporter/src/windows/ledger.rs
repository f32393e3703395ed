//! What was reported, and what is to be done next. Pure: no I/O, no clock. The model in `model` drives the same code.
//!
//! A record goes through four places, and each move is one step of the leader:
//! 1. counted, and found to be news: [`Ledger::plan`]
//! 2. `pending`: written down in Redis, so that it is published as it is, by this leader or the next
//! 3. `acknowledged`: Kafka has it, and Redis does not know yet
//! 4. `watched`: recorded, and counted again until its late period is over
//!
//! Then the window is closed: its sets are moved aside, so that nothing is added to them any more, and counted for the last
//! time. Once that count is reported the window is final, and what was moved aside is removed. Whatever is in its sets after
//! that came too late: it is kept apart, and a last record tells how many ids that are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use verve_protocol::keys::UNREPORTED_SECONDS;
use verve_protocol::{Report, Window, WindowLength, WindowRecord};

use super::pending::Pending;
use crate::clock::millis;

/// How long reports are kept after the end of their window: a week.
pub const KEPT: Duration = Duration::from_secs(7 * 86_400);

/// How long ids are kept after the end of their window, or after the leader last kept them from expiring.
pub const IDS_KEPT: Duration = Duration::from_secs(UNREPORTED_SECONDS);

/// A window whose ids may expire within this time is lost already: longer than it takes a leader from its first look to its first count.
const LOST_BEFORE: Duration = Duration::from_secs(60);

/// How many final reports a leader remembers, in case Redis loses them: at a minute each, sixteen hours.
const REMEMBERED: usize = 1000;

/// When windows are reported, and how long they are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Schedule {
    /// From a window's end to its first report.
    pub grace: Duration,
    /// From a window's first report: how long late ids correct it.
    pub late: Duration,
}

/// What is in Redis when a leader begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stored {
    /// What was reported of the newest window, of those that are not final, and of those that this replica knows something of.
    pub reports: BTreeMap<Window, Report>,
    /// The newest window that was reported.
    pub newest: Option<Window>,
    /// What was begun and not finished.
    pub pending: BTreeMap<Window, Pending>,
    /// Where a reporter began that has reported nothing, see [`begin`].
    pub from: Option<Window>,
    /// When a leader last kept the ids of windows that it still needed from expiring, in Unix milliseconds.
    pub kept_ms: Option<u64>,
}

impl Stored {
    /// Takes back that windows are final which have not even ended at `now_ms`: the clock was ahead for a while. Answers which.
    pub fn reopen(&mut self, now_ms: u64) -> Vec<Window> {
        let mut early = Vec::new();
        for (window, report) in &mut self.reports {
            if report.is_final && window.end_ms() > now_ms {
                report.is_final = false;
                early.push(*window);
            }
        }
        // Nor is anything of them to be removed.
        self.pending
            .retain(|window, pending| *pending != Pending::Remove || !early.contains(window));
        early
    }

    /// The first window whose ids are certainly there at `now_ms`.
    fn first_kept(&self, length: WindowLength, now_ms: u64) -> Window {
        let certain_ms = now_ms.saturating_sub(millis(IDS_KEPT - LOST_BEFORE));
        match self.kept_ms {
            // Those that had ended by then were kept, and those that have ended since are not older.
            Some(kept_ms) if kept_ms > certain_ms => length.window_at_ms(0),
            _ => window_certain_at(length, now_ms),
        }
    }
}

/// What was reported, and what is due next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ledger {
    schedule: Schedule,
    /// The first window not reported yet.
    next: Window,
    /// The first window that was up to this process. What is before it and has no report was never reported.
    first: Window,
    /// Windows before `first` that have ids and no report.
    strays: BTreeSet<Window>,
    pending: BTreeMap<Window, WindowRecord>,
    acknowledged: BTreeMap<Window, Change>,
    watched: BTreeMap<Window, Report>,
    /// The newest final reports, at most [`REMEMBERED`]: a Redis that has taken over may have lost them.
    finals: BTreeMap<Window, Report>,
    removals: BTreeSet<Window>,
}

/// What Kafka has acknowledged, and how it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Change {
    pub record: WindowRecord,
    pub report: Report,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Record what Kafka has; then [`Ledger::recorded`].
    Record(Vec<Change>),
    /// Publish what was written down; once Kafka has all of it [`Ledger::acknowledged`].
    Publish(Vec<WindowRecord>),
    /// Remove what final windows were counted by; then [`Ledger::removed`].
    Remove(Vec<Window>),
    /// Count these windows; then [`Ledger::plan`].
    Count(Vec<Window>),
}

/// What is to be published of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct News {
    pub window: Window,
    pub count: u64,
    pub revision: u64,
    /// Ids that came too late.
    pub late: u64,
    /// Requests and duplicates as they were reported last, for when the statistics have expired.
    pub before: [u64; 2],
}

/// What follows from a count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be written down as pending; then [`Ledger::prepared`].
    pub news: Vec<News>,
    /// Windows whose late period is over: to be closed and counted for the last time; then [`Ledger::plan_closed`].
    pub over: Vec<Window>,
}

/// What follows from the last count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastPlan {
    /// Ids that came in the last moment. To be written down as pending; then [`Ledger::prepared`].
    pub news: Vec<News>,
    /// Windows whose last count is reported, to be recorded as final; then [`Ledger::finished`].
    pub finals: Vec<(Window, Report)>,
}

/// Windows that nobody can report any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    pub first: Window,
    pub last: Window,
    pub windows: u64,
}

/// What to do about ids of a window that is past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stray {
    /// They came too late: the window is final.
    TooLate,
    /// Redis has no report of the window, since it was never reported or since Redis has lost that: count it.
    Unreported,
    /// Another replica watches the window, or it is not due by a clock that was set back.
    Expected,
}

impl Ledger {
    /// Goes on after the last report, or where a reporter began that has reported nothing. Windows so old that their ids may have expired are lost, and said
    /// to be. `known` is what this replica last knew.
    pub fn resume(
        length: WindowLength,
        schedule: Schedule,
        mut stored: Stored,
        known: Option<&Self>,
        now_ms: u64,
    ) -> (Self, Option<Lost>) {
        let certain = window_certain_at(length, now_ms);
        let acknowledged = known.map_or_else(BTreeMap::new, |known| known.remind(&mut stored, certain));
        let current = length.window_at_ms(now_ms);
        let first_kept = stored.first_kept(length, now_ms);
        let reported = stored.reports.last_key_value().map(|(newest, _)| *newest);
        let gone_on_from = known.and_then(|known| known.next.previous());
        let newest = reported.max(stored.newest).max(gone_on_from);
        // What somebody has begun to publish comes after what is before it, though a report may be of a window long ago that had ids.
        let publishing = stored
            .pending
            .iter()
            .filter(|(window, pending)| pending.record(**window).is_some());
        let begun = publishing.map(|(window, _)| *window).max();
        // Where Redis has no report at all, and this process knows of some, they are gone on from, however late Redis has begun anew.
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
            // What was skipped was not up to this process either, and is reported if the clock was wrong that it was lost by.
            first: known.filter(|_| lost.is_none()).map_or(next, |known| known.first),
            strays: BTreeSet::new(),
            pending: BTreeMap::new(),
            acknowledged,
            watched: BTreeMap::new(),
            finals: known.map_or_else(BTreeMap::new, |known| known.finals.clone()),
            removals: BTreeSet::new(),
        };
        for (window, pending) in stored.pending {
            match (pending.record(window), pending) {
                (Some(record), _) => drop(ledger.pending.insert(window, record)),
                (None, _) => drop(ledger.removals.insert(window)),
            }
        }
        for (window, report) in stored.reports {
            ledger.reported(window, report);
        }
        (ledger, lost)
    }

    /// A window has this report.
    fn reported(&mut self, window: Window, report: Report) {
        if report.is_final {
            self.watched.remove(&window);
            self.finals.insert(window, report);
            if self.finals.len() > REMEMBERED {
                self.finals.pop_first();
            }
        } else {
            self.finals.remove(&window);
            self.watched.insert(window, report);
        }
    }

    /// Adds to what was read from Redis what this ledger knows and Redis does not, since it may have lost its data, or another one
    /// has taken over that did not have all of them. A window that Redis does not have the last report of is counted again, and so
    /// made final there, unless it is before `certain`: Redis has no reports for ever either. Answers what Kafka has acknowledged and
    /// nobody has recorded, and takes it from what is pending.
    fn remind(&self, stored: &mut Stored, certain: Window) -> BTreeMap<Window, Change> {
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
            if reports
                .get(&window)
                .is_none_or(|report| report.revision < known.revision)
            {
                let is_final = false;
                reports.insert(window, Report { is_final, ..known });
            }
        }
        acknowledged
    }

    /// What to do at `now_ms`: of due windows at most `limit`, and watched ones only if `watch`. What was begun comes first.
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

    /// Whether Kafka has what Redis does not know of.
    pub fn owes_recording(&self) -> bool {
        !self.acknowledged.is_empty()
    }

    /// The windows that are due at `now_ms`, oldest first, at most `limit`.
    pub fn due(&self, now_ms: u64, limit: usize) -> Vec<Window> {
        let closed = |window: &Window| self.due_ms(*window) <= now_ms;
        let in_order = std::iter::successors(Some(self.next), |window| Some(window.next())).take_while(closed);
        self.strays.iter().copied().chain(in_order).take(limit).collect()
    }

    /// When the next window is due, in Unix milliseconds.
    pub fn next_due_ms(&self) -> u64 {
        self.due_ms(self.next)
    }

    /// The windows whose reports it knows, which others may have changed since.
    pub fn known(&self) -> Vec<Window> {
        let last = self.next.previous();
        let reported = self.watched.keys().chain(self.finals.keys());
        let known = reported.chain(self.acknowledged.keys()).copied();
        known.chain(last).collect()
    }

    /// The windows that are not reported, and have ended at `now_ms`, due or not.
    pub fn ended(&self, now_ms: u64) -> Vec<Window> {
        self.due(now_ms.saturating_add(millis(self.schedule.grace)), usize::MAX)
    }

    /// The first window whose report may change, by way of counting; none that is older is touched again but by ids that came too late.
    pub fn first_open(&self) -> Window {
        self.watched
            .keys()
            .chain(self.pending.keys())
            .copied()
            .fold(self.next, Window::min)
    }

    /// Counts these, which have ids and of which Redis has no report, unless somebody has begun to meanwhile. Of those that were
    /// reported only what is news is published.
    pub fn add_strays(&mut self, windows: &[Window]) {
        let past: Vec<Window> = windows.iter().copied().filter(|window| self.is_past(*window)).collect();
        for window in past {
            match self.finals.remove(&window) {
                Some(report) => drop(self.watched.insert(
                    window,
                    Report {
                        is_final: false,
                        ..report
                    },
                )),
                None => drop(self.strays.insert(window)),
            }
        }
    }

    /// The windows whose ids are needed still, except those that are only due.
    pub fn needed(&self) -> Vec<Window> {
        self.pending.keys().chain(self.watched.keys()).copied().collect()
    }

    /// What to do about windows that had so many unique ids at `now_ms`.
    pub fn plan(&self, counts: impl IntoIterator<Item = (Window, u64)>, now_ms: u64) -> Plan {
        let mut plan = Plan::default();
        for (window, count) in counts {
            match (self.news(window, count), self.watched.get(&window)) {
                (Some(news), _) => plan.news.push(news),
                (None, Some(report)) if now_ms >= self.final_ms(window, report) => plan.over.push(window),
                (None, _) => {}
            }
        }
        plan
    }

    /// What to do about closed windows that had so many unique ids.
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

    fn news(&self, window: Window, count: u64) -> Option<News> {
        let before = self.watched.get(&window);
        let revision = match before {
            None => 0,
            Some(report) if count > report.count => report.revision + 1,
            // Ids do not leave a set; a smaller count means that Redis lost some, and what was reported stays true.
            Some(_) => return None,
        };
        Some(News {
            window,
            count,
            revision,
            late: 0,
            before: before.map(before_of).unwrap_or_default(),
        })
    }

    /// What to publish of a past window of which Redis has this report, and so many ids that came too late.
    pub fn late(&self, window: Window, report: &Report, ids: u64) -> Option<News> {
        (self.is_past(window) && report.is_final && ids > report.late).then_some(News {
            window,
            count: report.count,
            revision: report.revision + 1,
            late: ids,
            before: before_of(report),
        })
    }

    /// These records were written down.
    pub fn prepared(&mut self, records: impl IntoIterator<Item = WindowRecord>) {
        self.pending
            .extend(records.into_iter().map(|record| (record.window, record)));
    }

    /// Kafka has what was pending, at `now_ms`.
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
            self.acknowledged.insert(window, Change { record, report });
        }
    }

    /// What Kafka has acknowledged was recorded.
    pub fn recorded(&mut self) {
        for (window, change) in std::mem::take(&mut self.acknowledged) {
            self.reported(window, change.report);
            self.strays.remove(&window);
            self.next = self.next.max(window.next());
        }
    }

    /// A window was made final. What it was counted by is there still.
    pub fn finished(&mut self, window: Window) {
        if let Some(report) = self.watched.get(&window).copied() {
            let is_final = true;
            self.reported(window, Report { is_final, ..report });
        }
        self.removals.insert(window);
    }

    /// What these windows were counted by was removed.
    pub fn removed(&mut self, windows: &[Window]) {
        for window in windows {
            self.removals.remove(window);
        }
    }

    /// Whether nothing is expected of `window` any more, so that it ought to have no ids.
    pub fn is_past(&self, window: Window) -> bool {
        window < self.next
            && !self.watched.contains_key(&window)
            && !self.strays.contains(&window)
            && !self.pending.contains_key(&window)
            && !self.acknowledged.contains_key(&window)
            && !self.removals.contains(&window)
    }

    /// What to do about ids of a past window, of which Redis has this report.
    pub fn stray(&self, window: Window, report: Option<&Report>, now_ms: u64) -> Stray {
        if self.due_ms(window) > now_ms {
            return Stray::Expected;
        }
        let are_all_there = window >= window_certain_at(window.length(), now_ms);
        let is_unknown = window < self.first || self.finals.contains_key(&window);
        if report.is_none() && is_unknown && are_all_there {
            return Stray::Unreported;
        }
        match report {
            Some(report) if !report.is_final => Stray::Expected,
            _ => Stray::TooLate,
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

/// Where the first reporter of all begins at `now_ms`: with the oldest window that has ids, or the current one, whichever is first. One whose ids may
/// have expired is none to begin with, since all windows since then would be made up for, perhaps half a century.
pub fn begin(length: WindowLength, with_ids: impl IntoIterator<Item = Window>, now_ms: u64) -> Window {
    let certain = window_certain_at(length, now_ms);
    let whole = with_ids.into_iter().filter(|window| *window >= certain);
    whole.fold(length.window_at_ms(now_ms), Window::min)
}

/// The first window whose ids have certainly not expired at `now_ms`, and do not before they can be counted, whatever any leader has done.
pub const fn window_certain_at(length: WindowLength, now_ms: u64) -> Window {
    length.window_at_ms(now_ms.saturating_sub((IDS_KEPT.as_millis() - LOST_BEFORE.as_millis()) as u64))
}

fn before_of(report: &Report) -> [u64; 2] {
    [report.requests, report.duplicates]
}

#[cfg(test)]
mod tests;
