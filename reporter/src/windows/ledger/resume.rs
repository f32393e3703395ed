//! How a leader resumes.
//!
//! It resumes by the state in Redis, and by what its process still knows.

use std::collections::{BTreeMap, BTreeSet};

use verve_protocol::{Report, Window, WindowLength};

use super::{IDS_KEPT, LOST_BEFORE, Ledger, RecordedRevision, Schedule, window_certain_at};
use crate::clock::millis;
use crate::windows::pending::Pending;

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
    /// The window where a reporter began that has reported nothing.
    ///
    /// See [`super::begin`].
    pub from: Option<Window>,
    /// The window at which an idle counter goes on.
    ///
    /// Windows since the newest report are not due: the counter had no ids.
    pub awake: Option<Window>,
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

/// Windows that can no longer be reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    pub first: Window,
    pub last: Window,
    pub windows: u64,
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
        let reminded = known.map(|known| known.remind(&mut stored, certain));
        let (acknowledged, recounted) = reminded.unwrap_or_default();
        let current = length.window_at_ms(now_ms);
        let first_kept = stored.first_kept(length, now_ms);
        let reported = stored.reports.last_key_value().map(|(newest, _)| *newest);
        let known_newest = known.and_then(|known| known.newest(&stored));
        let newest = reported.max(stored.newest).max(known_newest);
        // Windows before a pending record are already reported or pending, so resume after it. The
        // newest report does not show that: it may be of a window long ago that had ids.
        let publishing = stored
            .pending
            .iter()
            .filter(|(window, pending)| pending.record(**window).is_some());
        let begun = publishing.map(|(window, _)| *window).max();
        // If Redis has no report at all, but this process knows some, resume after those, even if
        // Redis has begun again at a later window.
        let from = stored.from.filter(|_| stored.newest.is_some());
        let next = match newest.max(begun) {
            Some(newest) => from.into_iter().chain(stored.awake).fold(newest.next(), Window::max),
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
            // a wrong clock, they are reported later. Nor does it know whether windows between its
            // own and `next` were reported: if Redis had lost its data, another leader may have
            // begun after them.
            first: known
                .filter(|known| lost.is_none() && next <= known.reached())
                .map_or(next, |known| known.first),
            orphaned: BTreeSet::new(),
            pending: BTreeMap::new(),
            acknowledged,
            watched: BTreeMap::new(),
            finals: known.map_or_else(BTreeMap::new, |known| known.finals.clone()),
            recounted,
            removals: BTreeSet::new(),
            idle_after: None,
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

    /// Returns the newest window that this leader knows to be reported or pending.
    ///
    /// A window that Redis no longer has as pending does not count: it may not be published.
    fn newest(&self, stored: &Stored) -> Option<Window> {
        let is_forgotten = |window: &Window| {
            let pending = self.pending.get(window);
            pending.is_some_and(|record| record.revision == 0) && !stored.pending.contains_key(window)
        };
        let mut newest = self.next.previous();
        while let Some(forgotten) = newest.filter(is_forgotten) {
            newest = forgotten.previous();
        }
        newest
    }

    /// Returns the first window that this leader has not even begun to report.
    fn reached(&self) -> Window {
        let begun = self.pending.keys().chain(self.acknowledged.keys());
        begun.map(|window| window.next()).fold(self.next, Window::max)
    }

    /// Adds to `stored` what this ledger knows and Redis does not.
    ///
    /// Redis may have lost its data, or a failover may have led to a replica of Redis without all
    /// of it. A window that Redis has no report of is counted again, and so made final there,
    /// unless it is before `certain`: Redis does not keep reports for ever either.
    ///
    /// Returns the revisions that Kafka has acknowledged and no replica has recorded, and removes
    /// them from the pending steps. Returns also the windows that were final and are counted again.
    fn remind(&self, stored: &mut Stored, certain: Window) -> (BTreeMap<Window, RecordedRevision>, BTreeSet<Window>) {
        let Stored { reports, pending, .. } = stored;
        let (mut acknowledged, mut recounted) = (BTreeMap::new(), BTreeSet::new());
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
            let was_final = self.finals.contains_key(&window) || self.recounted.contains(&window);
            if before.is_none() && was_final {
                recounted.insert(window);
            }
            // A window that is final in Redis was closed: nothing is left to count.
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
        (acknowledged, recounted)
    }
}
