//! What was reported, and what is to be done next. Pure: no I/O, no clock. The model in `model` drives the same code.
//!
//! A record goes through four places, and each move is one step of the leader:
//! 1. counted, and found to be news: [`Ledger::plan`]
//! 2. `pending`: written down in Redis, so that it is published as it is, by this leader or the next
//! 3. `acknowledged`: Kafka has it, and Redis does not know yet
//! 4. `watched`: recorded, and counted again until it is final

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use verve_protocol::keys::UNREPORTED_SECONDS;
use verve_protocol::{Report, Window, WindowLength, WindowRecord};

use super::pending::Pending;

/// How long reports are kept after the end of their window: a week.
pub const KEPT: Duration = Duration::from_secs(7 * 86_400);

/// When windows are reported, and how long they are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Periods {
    /// From a window's end to its first report.
    pub grace: Duration,
    /// From a window being due, and from each report of it: how long late ids correct it.
    pub late: Duration,
}

/// What is in Redis when a leader begins.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// What was reported.
    pub reports: BTreeMap<Window, Report>,
    /// What was begun and not finished.
    pub pending: BTreeMap<Window, Pending>,
    /// Where a reporter began that has reported nothing.
    pub from: Option<Window>,
    /// The oldest window that has ids.
    pub oldest_ids: Option<Window>,
}

/// What was reported, and what is due next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ledger {
    periods: Periods,
    /// The first window not reported yet.
    next: Window,
    /// The first window that was up to this process. What is before it and has no report was never reported.
    first: Window,
    /// Windows before `first` that have ids and no report.
    strays: BTreeSet<Window>,
    pending: BTreeMap<Window, WindowRecord>,
    acknowledged: BTreeMap<Window, Change>,
    watched: BTreeMap<Window, Report>,
    removals: BTreeMap<Window, Vec<u64>>,
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
    /// Remove what is left of the sets of final windows, of which so many ids were counted on each Redis; then [`Ledger::removed`].
    Remove(Vec<(Window, Vec<u64>)>),
    /// Count these windows; then [`Ledger::plan`].
    Count(Vec<Window>),
}

/// What follows from a count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Window, count and revision, to be written down as pending; then [`Ledger::prepared`].
    pub news: Vec<(Window, u64, u64)>,
    /// Windows to be made final if their sets still have these numbers of ids; then [`Ledger::finished`].
    pub finals: Vec<Final>,
}

/// A window whose late period is over, and whose count is reported.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Final {
    pub window: Window,
    pub report: Report,
    /// How many ids each Redis has.
    pub counted: Vec<u64>,
}

impl Final {
    /// How many counted ids each Redis has still, once those of the first are removed with the window becoming final; `None` if
    /// there are none.
    pub fn elsewhere(&self) -> Option<Vec<u64>> {
        let mut counted = self.counted.clone();
        *counted.first_mut()? = 0;
        counted.iter().any(|n| *n > 0).then_some(counted)
    }
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
    /// They are too late: the window is final.
    TooLate,
    /// The window was never reported: report it.
    Unreported,
}

impl Ledger {
    /// Goes on after the last report. Without any it starts where a reporter began before, with the oldest window that has
    /// ids, or with the current one, whichever is first. Windows so old that their ids have expired are lost, and said to be.
    /// `known` is what this replica last knew.
    pub fn resume(
        length: WindowLength,
        periods: Periods,
        mut stored: Stored,
        known: Option<&Self>,
        now_ms: u64,
    ) -> (Self, Option<Lost>) {
        let acknowledged = known.map_or_else(BTreeMap::new, |known| known.remind(&mut stored));
        let current = length.window_at_ms(now_ms);
        let next = match stored.reports.last_key_value() {
            Some((last, _)) => last.next(),
            None => [stored.from, stored.oldest_ids]
                .into_iter()
                .flatten()
                .fold(current, Window::min),
        };
        // A reporter that could not publish kept the ids of due windows from expiring.
        let oldest_kept = length.window_at_ms(now_ms.saturating_sub(UNREPORTED_SECONDS * 1000));
        let oldest_kept = stored.oldest_ids.unwrap_or(oldest_kept).min(oldest_kept);
        let lost = (next < oldest_kept).then(|| Lost {
            first: next,
            last: oldest_kept.previous().unwrap_or(next),
            windows: (oldest_kept.start() - next.start()) / length.seconds(),
        });
        let next = next.max(oldest_kept);
        let mut ledger = Self {
            periods,
            next,
            first: known.map_or(next, |known| known.first),
            strays: BTreeSet::new(),
            pending: BTreeMap::new(),
            acknowledged,
            watched: BTreeMap::new(),
            removals: BTreeMap::new(),
        };
        for (window, pending) in stored.pending {
            match (pending.record(window), pending) {
                (Some(record), _) => drop(ledger.pending.insert(window, record)),
                (None, Pending::Remove { counted }) => drop(ledger.removals.insert(window, counted)),
                (None, Pending::Publish { .. }) => {}
            }
        }
        ledger.watched = stored.reports;
        ledger.watched.retain(|_, report| !report.is_final);
        (ledger, lost)
    }

    /// Adds to what was read from Redis what this ledger knows and Redis does not, since it may have lost its data. Answers
    /// what Kafka has acknowledged and nobody has recorded, and takes it from what is pending.
    fn remind(&self, stored: &mut Stored) -> BTreeMap<Window, Change> {
        let Stored { reports, pending, .. } = stored;
        let mut acknowledged = BTreeMap::new();
        let mut known = self.watched.clone();
        for (window, change) in &self.acknowledged {
            if pending.get(window) == Some(&Pending::publish(&change.record)) {
                pending.remove(window);
                acknowledged.insert(*window, *change);
            } else {
                known.insert(*window, change.report);
            }
        }
        for (window, known) in known {
            let report = reports.entry(window).or_insert(known);
            if report.revision < known.revision {
                *report = known;
            }
        }
        if let Some(last) = self.next.previous() {
            // Stands for whatever was reported of it: it is only there to be gone on from.
            reports.entry(last).or_insert(Report {
                count: 0,
                revision: 0,
                time: 0,
                is_final: true,
            });
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
            Step::Remove(self.removals.clone().into_iter().collect())
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

    /// The windows whose ids are needed still, except those that are only due.
    pub fn needed(&self) -> Vec<Window> {
        self.pending.keys().chain(self.watched.keys()).copied().collect()
    }

    /// What to do about windows that had so many unique ids on each Redis at `now_ms`.
    pub fn plan(&self, counts: impl IntoIterator<Item = (Window, Vec<u64>)>, now_ms: u64) -> Plan {
        let mut plan = Plan::default();
        for (window, counted) in counts {
            let count = counted.iter().sum();
            match self.watched.get(&window) {
                None => plan.news.push((window, count, 0)),
                Some(report) if count > report.count => plan.news.push((window, count, report.revision + 1)),
                // Ids do not leave a set; a smaller count means that Redis lost some, and what was reported stays true.
                Some(report) if now_ms >= self.final_ms(window, report) => plan.finals.push(Final {
                    window,
                    report: Report {
                        is_final: true,
                        ..*report
                    },
                    counted,
                }),
                Some(_) => {}
            }
        }
        plan
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
                is_final: false,
            };
            self.acknowledged.insert(window, Change { record, report });
        }
    }

    /// What Kafka has acknowledged was recorded.
    pub fn recorded(&mut self) {
        for (window, change) in std::mem::take(&mut self.acknowledged) {
            self.watched.insert(window, change.report);
            self.strays.remove(&window);
            self.next = self.next.max(window.next());
        }
    }

    /// A window was made final. Its sets may be there still, except on the first Redis.
    pub fn finished(&mut self, done: Final) {
        self.watched.remove(&done.window);
        if let Some(counted) = done.elsewhere() {
            self.removals.insert(done.window, counted);
        }
    }

    /// The sets of these windows were removed.
    pub fn removed(&mut self, windows: impl IntoIterator<Item = Window>) {
        for window in windows {
            self.removals.remove(&window);
        }
    }

    /// Whether nothing is expected of `window` any more, so that it ought to have no ids.
    pub fn is_past(&self, window: Window) -> bool {
        window < self.next
            && !self.watched.contains_key(&window)
            && !self.strays.contains(&window)
            && !self.pending.contains_key(&window)
            && !self.acknowledged.contains_key(&window)
            && !self.removals.contains_key(&window)
    }

    /// What to do about ids of a past window, of which Redis has this report.
    pub fn stray(&mut self, window: Window, report: Option<&Report>, now_ms: u64) -> Stray {
        // A day less than reports are kept, so that no report was trimmed by another replica's clock.
        let kept = millis(KEPT) - UNREPORTED_SECONDS * 1000;
        if report.is_none() && window < self.first && now_ms < window.end_ms() + kept {
            self.strays.insert(window);
            return Stray::Unreported;
        }
        Stray::TooLate
    }

    fn due_ms(&self, window: Window) -> u64 {
        window.end_ms() + millis(self.periods.grace)
    }

    fn final_ms(&self, window: Window, report: &Report) -> u64 {
        self.due_ms(window)
            .max(report.time)
            .saturating_add(millis(self.periods.late))
    }
}

/// Which of `reports` need not be kept: final, and older than [`KEPT`]. The newest stays, to be gone on from.
pub fn outdated(reports: &BTreeMap<Window, Report>, now_ms: u64) -> Vec<Window> {
    let newest = reports.keys().next_back();
    let old =
        |window: &Window, report: &Report| report.is_final && window.end_ms().saturating_add(millis(KEPT)) <= now_ms;
    let outdated = reports
        .iter()
        .filter(|(window, report)| Some(*window) != newest && old(window, report));
    outdated.map(|(window, _)| *window).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
