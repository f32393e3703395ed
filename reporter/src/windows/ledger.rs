//! Which windows are due, which are watched, and what to say of them. Pure: no I/O, no clock.

use std::collections::BTreeMap;
use std::time::Duration;

use verve_protocol::keys::UNREPORTED_SECONDS;
use verve_protocol::{Report, Window, WindowLength};

/// When windows are reported, and how long they are watched.
#[derive(Clone, Copy, Debug)]
pub struct Periods {
    /// From a window's end to its first report.
    pub grace: Duration,
    /// From its first report being due: how long late ids correct it.
    pub late: Duration,
}

/// What was reported, and what is due next.
#[derive(Clone, Debug)]
pub struct Ledger {
    periods: Periods,
    /// The windows still watched.
    watched: BTreeMap<Window, Report>,
    /// The first window not reported yet.
    next: Window,
}

/// What to do about a window that was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// To be published and recorded.
    pub publish: Option<Report>,
    /// Whether the window need not be watched after this.
    pub is_final: bool,
}

/// Windows that nobody can report any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    pub first: Window,
    pub last: Window,
    pub windows: u64,
}

impl Ledger {
    /// Goes on after the last of `reports`. Without any it starts where a reporter began before (`from`), with the oldest
    /// window that has ids, or with the current one, whichever is first. Windows so old that their ids have expired are lost, and said to be.
    pub fn resume(
        length: WindowLength,
        periods: Periods,
        reports: BTreeMap<Window, Report>,
        from: Option<Window>,
        oldest_ids: Option<Window>,
        now_ms: u64,
    ) -> (Self, Option<Lost>) {
        let current = length.window_at_ms(now_ms);
        let next = match reports.last_key_value() {
            Some((last, _)) => last.next(),
            None => [from, oldest_ids].into_iter().flatten().fold(current, Window::min),
        };
        // A reporter that could not publish kept the ids of due windows from expiring.
        let oldest_kept = length.window_at_ms(now_ms.saturating_sub(UNREPORTED_SECONDS * 1000));
        let oldest_kept = oldest_ids.unwrap_or(oldest_kept).min(oldest_kept);
        let lost = (next < oldest_kept).then(|| Lost {
            first: next,
            last: oldest_kept.previous().unwrap_or(next),
            windows: (oldest_kept.start() - next.start()) / length.seconds(),
        });
        let watched = reports.into_iter().filter(|(_, report)| !report.is_final).collect();
        (
            Self {
                periods,
                watched,
                next: next.max(oldest_kept),
            },
            lost,
        )
    }

    /// Adds to `reports`, as read from Redis, what this ledger knows and Redis does not: Redis may have lost its data.
    pub fn remind(&self, reports: &mut BTreeMap<Window, Report>) {
        for (window, known) in &self.watched {
            let report = reports.entry(*window).or_insert(*known);
            if report.revision < known.revision {
                *report = *known;
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
    }

    /// The windows that are due at `now_ms`, oldest first, at most `limit`.
    pub fn due(&self, now_ms: u64, limit: usize) -> Vec<Window> {
        let closed = |window: &Window| self.due_ms(*window) <= now_ms;
        std::iter::successors(Some(self.next), |window| Some(window.next()))
            .take_while(closed)
            .take(limit)
            .collect()
    }

    /// When the next window is due, in Unix milliseconds.
    pub fn next_due_ms(&self) -> u64 {
        self.due_ms(self.next)
    }

    /// The reported windows to count again.
    pub fn watched(&self) -> impl Iterator<Item = Window> {
        self.watched.keys().copied()
    }

    /// What was last reported of a window that is still watched.
    pub fn report(&self, window: Window) -> Option<&Report> {
        self.watched.get(&window)
    }

    /// What to do about `window`, which had `count` unique ids at `now_ms`.
    pub fn decide(&self, window: Window, count: u64, now_ms: u64) -> Decision {
        let revision = match self.watched.get(&window) {
            None => Some(0),
            Some(report) if count > report.count => Some(report.revision + 1),
            // Ids do not leave a set; a smaller count means that Redis lost some, and what was reported stays true.
            Some(_) => None,
        };
        Decision {
            publish: revision.map(|revision| Report {
                count,
                revision,
                time: now_ms,
                is_final: false,
            }),
            is_final: now_ms >= self.due_ms(window) + millis(self.periods.late),
        }
    }

    /// Takes note of what was recorded.
    pub fn record(&mut self, reports: impl IntoIterator<Item = (Window, Report)>) {
        for (window, report) in reports {
            if report.is_final {
                self.watched.remove(&window);
            } else {
                self.watched.insert(window, report);
            }
            self.next = self.next.max(window.next());
        }
    }

    fn due_ms(&self, window: Window) -> u64 {
        window.end_ms() + millis(self.periods.grace)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PERIODS: Periods = Periods {
        grace: Duration::from_secs(2),
        late: Duration::from_secs(120),
    };

    fn length() -> WindowLength {
        WindowLength::try_new(60).expect("valid")
    }

    fn window(start: u64) -> Window {
        length().window_starting(start).expect("a start")
    }

    fn report(count: u64, revision: u64) -> Report {
        Report {
            count,
            revision,
            time: 0,
            is_final: false,
        }
    }

    fn resume(reports: &[(u64, Report)], oldest_ids: Option<u64>, now_s: u64) -> (Ledger, Option<Lost>) {
        let reports = reports
            .iter()
            .map(|(start, report)| (window(*start), *report))
            .collect();
        Ledger::resume(length(), PERIODS, reports, None, oldest_ids.map(window), now_s * 1000)
    }

    fn due(ledger: &Ledger, now_ms: u64) -> Vec<u64> {
        ledger.due(now_ms, 100).into_iter().map(Window::start).collect()
    }

    #[test]
    fn a_window_is_due_once_grace_is_over() {
        let (ledger, _) = resume(&[], None, 600);
        assert_eq!(due(&ledger, 661_999), [0u64; 0]);
        assert_eq!(due(&ledger, 662_000), [600]);
        assert_eq!(ledger.next_due_ms(), 662_000);
    }

    #[test]
    fn it_starts_where_the_last_left_off() {
        assert_eq!(
            due(&resume(&[(600, report(1, 0))], None, 900).0, 902_000),
            [660, 720, 780, 840]
        );
        assert_eq!(due(&resume(&[], Some(720), 900).0, 902_000), [720, 780, 840]);
        // A clock of an edge host may be ahead.
        assert_eq!(due(&resume(&[], Some(1200), 900).0, 962_000), [900]);
        assert_eq!(resume(&[], Some(720), 900).0.due(902_000, 2).len(), 2);
        // One that began and died before its first report.
        let (ledger, _) = Ledger::resume(
            length(),
            PERIODS,
            BTreeMap::new(),
            Some(window(660)),
            Some(window(720)),
            900_000,
        );
        assert_eq!(due(&ledger, 902_000), [660, 720, 780, 840]);
    }

    #[test]
    fn a_redis_without_its_data_is_reminded() {
        let (mut ledger, _) = resume(&[], None, 600);
        ledger.record([(window(600), report(5, 1)), (window(660), report(1, 0))]);
        let goes_on = |mut reports: BTreeMap<Window, Report>| {
            ledger.remind(&mut reports);
            let (resumed, lost) = Ledger::resume(length(), PERIODS, reports, None, None, 1_200_000);
            assert_eq!(lost, None);
            (
                due(&resumed, 900_000),
                resumed.report(window(600)).map(|report| report.revision),
            )
        };
        assert_eq!(goes_on(BTreeMap::new()), (vec![720, 780], Some(1)));
        // What another replica has reported meanwhile counts.
        let others = BTreeMap::from([(window(600), report(6, 2)), (window(720), report(1, 0))]);
        assert_eq!(goes_on(others), (vec![780], Some(2)));
    }

    #[test]
    fn windows_whose_ids_have_expired_are_lost_and_said_to_be() {
        let (ledger, lost) = resume(&[(600, report(1, 0))], None, 600 + 86_400 + 180);
        assert_eq!(
            lost,
            Some(Lost {
                first: window(660),
                last: window(720),
                windows: 2
            })
        );
        assert_eq!(ledger.next_due_ms(), 842_000);
        assert_eq!(resume(&[(600, report(1, 0))], None, 600 + 86_400).1, None);
        // Unless a reporter kept them, because it could not publish.
        let (ledger, lost) = resume(&[(600, report(1, 0))], Some(660), 600 + 86_400 + 180);
        assert_eq!((lost, ledger.next_due_ms()), (None, 722_000));
    }

    #[test]
    fn late_ids_make_a_revision_until_the_late_period_is_over() {
        let (mut ledger, _) = resume(&[(600, report(5, 0))], None, 700);
        let decide = |ledger: &Ledger, count, now_s: u64| {
            let decision = ledger.decide(window(600), count, now_s * 1000);
            (decision.publish.map(|r| (r.count, r.revision)), decision.is_final)
        };
        assert_eq!(decide(&ledger, 5, 700), (None, false));
        assert_eq!(decide(&ledger, 4, 700), (None, false));
        assert_eq!(decide(&ledger, 6, 700), (Some((6, 1)), false));
        ledger.record([(window(600), report(6, 1))]);
        assert_eq!(decide(&ledger, 6, 781), (None, false));
        assert_eq!(decide(&ledger, 9, 782), (Some((9, 2)), true));
        assert_eq!(ledger.watched().count(), 1);
        ledger.record([(
            window(600),
            Report {
                is_final: true,
                ..report(9, 2)
            },
        )]);
        assert_eq!(ledger.watched().count(), 0);
        assert_eq!(due(&ledger, 722_000), [660]);
    }

    #[test]
    fn a_final_window_is_not_watched_after_a_restart() {
        let (ledger, _) = resume(
            &[
                (
                    600,
                    Report {
                        is_final: true,
                        ..report(5, 0)
                    },
                ),
                (660, report(1, 0)),
            ],
            None,
            800,
        );
        assert_eq!(ledger.watched().collect::<Vec<_>>(), [window(660)]);
    }

    proptest! {
        /// However the clock runs and whenever the reporter restarts, each window is first reported once, in order.
        #[test]
        fn every_window_is_reported_once_and_in_order(steps in proptest::collection::vec((0..200_000u64, any::<bool>()), 1..40)) {
            let (mut ledger, _) = resume(&[], None, 600);
            let (mut now, mut reported) = (600_000, BTreeMap::new());
            for (step, restart) in steps {
                now += step;
                if restart {
                    ledger = Ledger::resume(length(), PERIODS, reported.clone(), Some(window(600)), None, now).0;
                }
                for due in ledger.due(now, 3) {
                    prop_assert!(due.end_ms() + 2000 <= now);
                    let report = ledger.decide(due, 1, now).publish.expect("a first report");
                    prop_assert_eq!(report.revision, 0);
                    prop_assert!(reported.insert(due, report).is_none(), "{} twice", due);
                    ledger.record([(due, report)]);
                }
            }
            let starts: Vec<Window> = reported.keys().copied().collect();
            prop_assert!(starts.windows(2).all(|pair| pair[0].next() == pair[1]));
            prop_assert!(starts.first().is_none_or(|first| *first == window(600)));
        }
    }
}
