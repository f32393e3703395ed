use super::resume::Lost;
use super::*;
use crate::windows::pending::Pending;
use proptest::prelude::*;

const SCHEDULE: Schedule = Schedule {
    remembered: REMEMBERED,
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
        ..Report::default()
    }
}

fn finished(report: Report) -> Report {
    Report {
        is_final: true,
        ..report
    }
}

fn record(start: u64, count: u64, revision: u64) -> WindowRecord {
    WindowRecord {
        window: window(start),
        count,
        revision,
        requests: 0,
        duplicates: 0,
        late: 0,
    }
}

fn stored(reports: &[(u64, Report)]) -> Stored {
    Stored {
        reports: reports
            .iter()
            .map(|(start, report)| (window(*start), *report))
            .collect(),
        ..Stored::default()
    }
}

fn resume_from(stored: Stored, known: Option<&Ledger>, now_s: u64) -> (Ledger, Option<Lost>) {
    Ledger::resume(length(), SCHEDULE, stored, known, now_s * 1000)
}

fn resume(reports: &[(u64, Report)], with_ids: Option<u64>, now_s: u64) -> (Ledger, Option<Lost>) {
    let with_ids = with_ids.map(window);
    let from = reports.is_empty().then(|| begin(length(), with_ids, now_s * 1000));
    let stored = Stored {
        from,
        ..stored(reports)
    };
    resume_from(stored, None, now_s)
}

fn due(ledger: &Ledger, now_ms: u64) -> Vec<u64> {
    ledger.due(now_ms, 100).into_iter().map(Window::start).collect()
}

/// Takes records through all states, at `now_s`.
fn publish(ledger: &mut Ledger, records: &[WindowRecord], now_s: u64) {
    ledger.prepared(records.iter().copied());
    ledger.acknowledged(now_s * 1000);
    ledger.recorded();
}

#[test]
fn a_window_is_due_once_grace_is_over() {
    let (ledger, _) = resume(&[], None, 600);
    assert_eq!(due(&ledger, 661_999), [0u64; 0]);
    assert_eq!(due(&ledger, 662_000), [600]);
    assert_eq!(ledger.next_due_ms(), Some(662_000));
}

#[test]
fn it_continues_where_the_last_one_stopped() {
    let reported = [(600, report(1, 0))];
    assert_eq!(due(&resume(&reported, None, 900).0, 902_000), [660, 720, 780, 840]);
    assert_eq!(due(&resume(&[], Some(720), 900).0, 902_000), [720, 780, 840]);
    // The clock of an edge host may be ahead.
    assert_eq!(due(&resume(&[], Some(1200), 900).0, 962_000), [900]);
    assert_eq!(resume(&[], Some(720), 900).0.due(902_000, 2).len(), 2);
    // A reporter that began, and died before its first report.
    let began = Stored {
        from: Some(window(660)),
        ..stored(&[])
    };
    assert_eq!(due(&resume_from(began, None, 900).0, 902_000), [660, 720, 780, 840]);
}

#[test]
fn a_begun_report_is_completed_first_and_unchanged() {
    let begun = Stored {
        pending: BTreeMap::from([
            (window(600), Pending::publish(&record(600, 7, 1))),
            (window(540), Pending::Remove),
        ]),
        ..stored(&[(600, report(5, 0))])
    };
    let (mut ledger, _) = resume_from(begun, None, 900);
    let step = |ledger: &Ledger| ledger.step(902_000, 1, true);
    assert_eq!(step(&ledger), Step::Publish(vec![record(600, 7, 1)]));
    ledger.acknowledged(902_000);
    let change = RecordedRevision {
        record: record(600, 7, 1),
        report: Report {
            time: 902_000,
            ..report(7, 1)
        },
    };
    assert_eq!(step(&ledger), Step::Record(vec![change]));
    ledger.recorded();
    assert_eq!(step(&ledger), Step::Remove(vec![window(540)]));
    ledger.removed(&[window(540)]);
    assert_eq!(step(&ledger), Step::Count(vec![window(660), window(600)]));
    assert_eq!(ledger.step(902_000, 1, false), Step::Count(vec![window(660)]));
}

#[test]
fn a_replica_does_not_publish_again_what_kafka_has() {
    let (mut ledger, _) = resume(&[], None, 600);
    ledger.prepared([record(600, 5, 0)]);
    let pending = Stored {
        pending: BTreeMap::from([(window(600), Pending::publish(&record(600, 5, 0)))]),
        from: Some(window(600)),
        ..Stored::default()
    };
    // Kafka may have it: no answer arrived.
    let (again, _) = resume_from(pending.clone(), Some(&ledger), 700);
    assert_eq!(again.step(700_000, 1, true), Step::Publish(vec![record(600, 5, 0)]));
    // Kafka has it.
    ledger.acknowledged(663_000);
    let (again, _) = resume_from(pending, Some(&ledger), 700);
    assert!(matches!(&again.step(700_000, 1, true), Step::Record(changes) if changes[0].report.time == 663_000));
    // Another replica has recorded it meanwhile, or this one has and its answer was lost.
    let (again, _) = resume_from(stored(&[(600, report(5, 0))]), Some(&ledger), 700);
    assert_eq!(again.step(700_000, 1, true), Step::Count(vec![window(600)]));
}

#[test]
fn a_redis_without_its_data_is_given_the_reports_again() {
    let (mut ledger, _) = resume(&[], None, 600);
    publish(&mut ledger, &[record(600, 5, 1), record(660, 1, 0)], 800);
    let goes_on = |ledger: &Ledger, reports: &[(u64, Report)]| {
        let (resumed, lost) = resume_from(stored(reports), Some(ledger), 1200);
        assert_eq!(lost, None);
        (due(&resumed, 900_000), resumed.watched[&window(600)].revision)
    };
    assert_eq!(goes_on(&ledger, &[]), (vec![720, 780], 1));
    // Reports of another replica since then count.
    let others = [(600, report(6, 2)), (720, report(1, 0))];
    assert_eq!(goes_on(&ledger, &others), (vec![780], 2));
    // Records that Kafka has and Redis never recorded.
    ledger.prepared([record(600, 8, 2), record(720, 1, 0)]);
    ledger.acknowledged(900_000);
    assert_eq!(goes_on(&ledger, &[]), (vec![780], 2));
}

/// A failover to a replica of Redis has lost the last moments.
/// A window without a report there is counted again.
#[test]
fn a_redis_is_given_its_lost_final_reports_again() {
    let (mut ledger, _) = resume(&[], None, 600);
    publish(&mut ledger, &[record(600, 5, 1), record(660, 1, 0)], 800);
    ledger.finished(window(600));
    ledger.removed(&[window(600)]);
    assert!(ledger.is_past(window(600)));
    let counted_again = |report_of_600: Option<Report>| {
        let reports = report_of_600.map(|report| (600, report));
        let reports: Vec<_> = reports.into_iter().chain([(660, report(1, 0))]).collect();
        let (resumed, _) = resume_from(stored(&reports), Some(&ledger), 1000);
        let watched = resumed.watched.contains_key(&window(600));
        let final_again = resumed.plan([(window(600), 4)], 1000).finals;
        watched.then(|| (plan(&resumed, 5, 1000), plan(&resumed, 6, 1000), final_again))
    };
    let (over, revised) = ((None, true), (Some((6, 2)), false));
    // Fewer ids than were reported: these may be late ids, and closing the window would remove
    // them.
    assert_eq!(
        counted_again(None),
        Some((over, revised, vec![(window(600), ledger.finals[&window(600)])]))
    );
    assert_eq!(counted_again(Some(report(5, 1))), Some((over, revised, vec![])));
    // A window that is final in Redis was closed, and its ids were removed: nothing is counted.
    assert_eq!(counted_again(Some(finished(report(4, 0)))), None);
    assert_eq!(counted_again(Some(finished(report(5, 1)))), None);
    assert_eq!(counted_again(Some(finished(report(7, 2)))), None);
    // So much later, Redis need not have the report any more.
    let (resumed, _) = resume_from(stored(&[(90_000, report(1, 0))]), Some(&ledger), 90_000);
    assert!(!resumed.watched.contains_key(&window(600)));
    // No leader has noticed the failover, and the window has ids.
    assert_eq!(ledger.orphaned_ids(window(600), None, 1_000_000), Orphaned::Unreported);
    ledger.add_orphaned(&[window(600)]);
    assert_eq!(plan(&ledger, 6, 1000), (Some((6, 2)), false));
    assert_eq!(due(&ledger, 722_000), [0u64; 0]);
    assert_eq!(ledger.plan([(window(600), 4)], 1_000_000).finals.len(), 1);
    ledger.finished(window(600));
    assert_eq!(ledger.finals[&window(600)].revision, 1);
}

#[test]
fn not_all_that_was_made_final_is_remembered() {
    let reports: Vec<(u64, Report)> = (0..1500u64).map(|i| (i * 60, finished(report(1, 0)))).collect();
    let (ledger, _) = resume(&reports, None, 90_000);
    assert_eq!(ledger.known().len(), REMEMBERED + 1);
    assert!(ledger.known().contains(&window(1499 * 60)));
}

/// Another replica has corrected a watched window since, and made it final.
#[test]
fn a_report_that_others_made_final_is_not_taken_back() {
    let (mut ledger, _) = resume(&[], None, 600);
    publish(&mut ledger, &[record(600, 5, 0), record(660, 1, 0)], 722);
    // These reports are loaded again, although final ones are not.
    assert_eq!(ledger.known(), [window(600), window(660), window(660)]);
    let others = [(600, finished(report(7, 1))), (660, report(1, 0)), (720, report(1, 0))];
    let (resumed, _) = resume_from(stored(&others), Some(&ledger), 900);
    assert!(!resumed.watched.contains_key(&window(600)) && resumed.watched.contains_key(&window(660)));
    assert_eq!(resumed.ended(840_000).len(), 1);
}

#[test]
fn windows_whose_ids_have_expired_are_reported_as_lost() {
    let (ledger, lost) = resume(&[(600, report(1, 0))], None, 600 + 86_400 + 180);
    // This includes the window whose ids expire in a moment, before they are counted.
    assert_eq!(
        lost,
        Some(Lost {
            first: window(660),
            last: window(780),
            windows: 3
        })
    );
    assert_eq!(ledger.next_due_ms(), Some(902_000));
    assert_eq!(resume(&[(600, report(1, 0))], None, 600 + 86_400).1, None);
    // Late ids in one of them do not bring back the others.
    assert_eq!(resume(&[(600, report(1, 0))], Some(660), 600 + 86_400 + 180).1, lost);
    // A leader that could not publish renewed their expiry: then they are kept for a day.
    let kept = |kept_s: u64, now_s: u64| {
        let stored = Stored {
            kept_ms: Some(kept_s * 1000),
            ..stored(&[(600, report(1, 0))])
        };
        let (ledger, lost) = resume_from(stored, None, now_s);
        (lost.map(|lost| lost.windows), ledger.next_due_ms())
    };
    assert_eq!(kept(80_000, 600 + 86_400 + 180), (None, Some(722_000)));
    assert_eq!(kept(80_000, 80_000 + 86_400 - 61), (None, Some(722_000)));
    assert_eq!(
        kept(80_000, 80_040 + 86_400 - 60),
        (Some(80_040 / 60 - 11), Some(80_102_000))
    );
}

/// Windows that certainly have their ids are reported, for every window length.
/// All others are lost, and none of them is reported as 0.
#[test]
fn windows_of_every_length_are_lost_once_their_ids_may_have_expired() {
    for seconds in [1, 60, 3_600, 21_600, 86_400] {
        let length = WindowLength::try_new(seconds).expect("valid");
        let first = length.window_at_ms(20 * 86_400_000);
        for down_s in [0, 3_600, 67_200, 86_339, 86_340, 86_341, 88_200, 172_800, 260_000] {
            let now_ms = first.end_ms() + down_s * 1000;
            let stored = Stored {
                newest: first.previous(),
                ..Stored::default()
            };
            let (ledger, lost) = Ledger::resume(length, SCHEDULE, stored, None, now_ms);
            let expires_ms = |window: Window| window.end_ms() + 86_400_000;
            let next = ledger.next;
            assert!(expires_ms(next) > now_ms + 59_999, "{seconds} {down_s}");
            assert_eq!(lost.map_or(first, |lost| lost.last.next()), next);
            assert_eq!(
                lost.is_some(),
                expires_ms(first) <= now_ms + 60_000,
                "{seconds} {down_s}"
            );
            // No more windows are lost than necessary.
            let before = next.previous().expect("not the first");
            assert!(
                lost.is_none() || expires_ms(before) <= now_ms + 60_000,
                "{seconds} {down_s}"
            );
        }
    }
}

#[test]
fn a_single_old_set_does_not_cause_reports_of_half_a_century() {
    let now_s = 1_795_383_000;
    let (ledger, lost) = resume(&[], Some(0), now_s);
    assert_eq!((ledger.next, lost), (window(now_s), None));
    assert_eq!(ledger.orphaned_ids(window(0), None, now_s * 1000), Orphaned::TooLate);
    let with_ids = [0, now_s - 600, now_s - 60].map(window);
    assert_eq!(begin(length(), with_ids, now_s * 1000), window(now_s - 600));
}

#[test]
fn windows_that_were_made_final_before_they_began_are_watched_again() {
    let reports = [
        (540, finished(report(5, 0))),
        (600, finished(report(0, 0))),
        (660, finished(report(0, 0))),
    ];
    let mut early = stored(&reports);
    assert_eq!(early.reopen(630_000), [window(600), window(660)]);
    let (ledger, _) = resume_from(early, None, 630);
    assert_eq!(plan(&ledger, 3, 662), (Some((3, 1)), false));
    assert_eq!(due(&ledger, 722_000), [0u64; 0]);
    assert_eq!(due(&ledger, 782_000), [720]);
}

/// The clock was days ahead while an earlier leader ran.
/// By that clock, windows up to it are lost. By the right clock, they are reported if they have
/// ids.
#[test]
fn windows_that_a_wrong_clock_skipped_are_reported_once_they_have_ended() {
    let (mut ledger, _) = resume(&[(540, report(5, 0))], None, 630);
    let (ahead, lost) = resume_from(stored(&[(540, report(5, 0))]), Some(&ledger), 630 + 2 * 86_400);
    assert!(lost.is_some());
    (ledger, _) = resume_from(stored(&[(540, report(5, 0))]), Some(&ahead), 630);
    assert_eq!(ledger.orphaned_ids(window(600), None, 661_999), Orphaned::Expected);
    assert_eq!(ledger.orphaned_ids(window(600), None, 662_000), Orphaned::Unreported);
    ledger.add_orphaned(&[window(600)]);
    assert_eq!(due(&ledger, 662_000), [600]);
}

/// Another leader began later, since Redis had lost where this one had begun.
/// The windows in between are not taken for reported.
#[test]
fn windows_that_another_leader_skipped_are_reported_if_they_have_ids() {
    let (before, _) = resume(&[], Some(600), 7_200);
    assert_eq!(before.next, window(600));
    let (ledger, _) = resume_from(stored(&[(7_200, report(0, 0))]), Some(&before), 7_300);
    assert_eq!(ledger.orphaned_ids(window(660), None, 7_300_000), Orphaned::Unreported);
    // What it has published itself counts, though Redis has not recorded it.
    let (mut before, _) = resume(&[], Some(600), 722);
    before.prepared([record(600, 5, 0), record(660, 1, 0)]);
    let (ledger, _) = resume_from(stored(&[(660, report(1, 0))]), Some(&before), 722);
    assert_eq!(ledger.orphaned_ids(window(600), None, 722_000), Orphaned::TooLate);
}

/// Pending records that a failover lost are counted again.
///
/// The leader had resumed with them, and they were not published yet.
#[test]
fn windows_whose_pending_records_are_lost_are_counted_again() {
    let mut with_pending = stored(&[(540, report(1, 0))]);
    with_pending.pending = [(600, 5), (660, 0)]
        .map(|(start, count)| (window(start), Pending::publish(&record(start, count, 0))))
        .into();
    let (before, _) = resume_from(with_pending.clone(), None, 750);
    assert_eq!(before.next, window(720));
    let (ledger, _) = resume_from(stored(&[(540, report(1, 0))]), Some(&before), 750);
    assert_eq!(due(&ledger, 750_000), [600, 660]);
    // Not so if they are still pending, or if another leader has reported them.
    assert_eq!(resume_from(with_pending, Some(&before), 750).0.next, window(720));
    let (ledger, _) = resume_from(stored(&[(660, report(0, 0))]), Some(&before), 750);
    assert_eq!(due(&ledger, 790_000), [720]);
}

/// Plans the window at 600, and returns what is planned.
/// This is the count and revision of the pending revision, and whether the allowed lateness is
/// over.
fn plan(ledger: &Ledger, count: u64, now_s: u64) -> (Option<(u64, u64)>, bool) {
    let plan = ledger.plan([(window(600), count)], now_s * 1000);
    let revision = plan
        .revisions
        .first()
        .map(|revision| (revision.count, revision.revision));
    (revision, !plan.over.is_empty())
}

#[test]
fn late_ids_make_a_revision_until_the_late_period_is_over() {
    let (mut ledger, _) = resume(&[], None, 600);
    assert_eq!(plan(&ledger, 5, 662), (Some((5, 0)), false));
    publish(&mut ledger, &[record(600, 5, 0)], 662);
    assert_eq!(plan(&ledger, 5, 700), (None, false));
    assert_eq!(plan(&ledger, 4, 700), (None, false));
    assert_eq!(plan(&ledger, 6, 700), (Some((6, 1)), false));
    publish(&mut ledger, &[record(600, 6, 1)], 700);
    assert_eq!(plan(&ledger, 6, 781), (None, false));
    // First reported at 662, and watched for 120 s from then on.
    assert_eq!(plan(&ledger, 6, 782), (None, true));
    assert_eq!(plan(&ledger, 5, 782), (None, true));
    // A count that is not reported is not final.
    assert_eq!(plan(&ledger, 9, 782), (Some((9, 2)), false));
    // Nor are ids that arrived at the last moment.
    let last = ledger.plan_closed([(window(600), 7)]);
    assert_eq!((last.revisions[0].count, last.revisions[0].revision), (7, 2));
    assert!(last.finals.is_empty());
    publish(&mut ledger, &[record(600, 7, 2)], 783);
    assert_eq!(plan(&ledger, 7, 783), (None, true));
    let last = ledger.plan_closed([(window(600), 7)]);
    assert!(last.revisions.is_empty());
    for (window, report) in last.finals {
        assert_eq!((report.count, report.revision, report.is_final), (7, 2, true));
        ledger.finished(window);
    }
    assert!(ledger.watched.is_empty());
    assert_eq!(due(&ledger, 722_000), [660]);
}

#[test]
fn a_window_reported_after_an_outage_has_its_full_lateness() {
    let (mut ledger, _) = resume(&[(540, finished(report(1, 0)))], None, 3_600);
    publish(&mut ledger, &[record(600, 5, 0)], 3_600);
    assert_eq!(plan(&ledger, 5, 3_719), (None, false));
    assert_eq!(plan(&ledger, 6, 3_719), (Some((6, 1)), false));
    assert_eq!(plan(&ledger, 5, 3_720), (None, true));
}

#[test]
fn the_ids_of_a_final_window_are_removed() {
    let (mut ledger, _) = resume(&[(600, report(3, 0))], None, 1_000);
    ledger.finished(window(600));
    assert!(!ledger.is_past(window(600)));
    assert_eq!(ledger.step(700_000, 1, true), Step::Remove(vec![window(600)]));
    ledger.removed(&[window(600)]);
    assert!(ledger.is_past(window(600)));
}

#[test]
fn ids_that_came_too_late_are_published_once() {
    let last = finished(report(5, 1));
    let (mut ledger, _) = resume(&[(600, last)], None, 1_000);
    let late = ledger.late(window(600), &last, 2).expect("a revision");
    assert_eq!((late.count, late.revision, late.late), (5, 2, 2));
    assert_eq!(ledger.late(window(600), &report(5, 1), 2), None, "watched by another");
    assert_eq!(ledger.late(window(660), &last, 2), None, "not past");
    ledger.prepared([WindowRecord {
        late: 2,
        ..record(600, 5, 2)
    }]);
    assert_eq!(ledger.late(window(600), &last, 2), None, "on its way");
    ledger.acknowledged(1_000_000);
    let Step::Record(changes) = ledger.step(1_000_000, 1, true) else {
        panic!("nothing to record")
    };
    let after = changes[0].report;
    assert!(after.is_final && after.late == 2 && after.revision == 2);
    ledger.recorded();
    assert!(ledger.watched.is_empty());
    assert_eq!(ledger.late(window(600), &after, 2), None);
    assert_eq!(ledger.late(window(600), &after, 3).expect("more").revision, 3);
}

#[test]
fn a_final_window_is_not_watched_after_a_restart() {
    let (ledger, _) = resume(&[(600, finished(report(5, 0))), (660, report(1, 0))], None, 800);
    assert_eq!(ledger.step(700_000, 1, true), Step::Count(vec![window(660)]));
}

#[test]
fn ids_of_a_past_window_are_too_late_unless_it_was_never_reported() {
    let (mut ledger, _) = resume(&[(600, report(1, 0))], None, 800);
    let day = 86_400_000;
    assert!(ledger.is_past(window(540)));
    assert!(!ledger.is_past(window(600)), "watched");
    assert!(!ledger.is_past(window(660)), "not reported yet");
    let last = finished(report(1, 0));
    assert_eq!(
        ledger.orphaned_ids(window(540), Some(&last), 800_000),
        Orphaned::TooLate
    );
    assert_eq!(
        ledger.orphaned_ids(window(540), Some(&report(1, 0)), 800_000),
        Orphaned::Expected
    );
    // Some of its ids may have expired, so that a count would be wrong.
    assert_eq!(
        ledger.orphaned_ids(window(540), None, 600_000 + day - 60_000),
        Orphaned::TooLate
    );
    assert_eq!(
        ledger.orphaned_ids(window(540), None, 600_000 + day - 60_001),
        Orphaned::Unreported
    );
    ledger.add_orphaned(&[window(540), window(600), window(660)]);
    assert_eq!(due(&ledger, 722_000), [540, 660]);
    assert!(!ledger.is_past(window(540)));
    publish(&mut ledger, &[record(540, 5, 0)], 722);
    assert_eq!(due(&ledger, 722_000), [660]);
}

#[test]
fn a_redis_that_lost_its_reports_does_not_have_windows_reported_again() {
    let (mut ledger, _) = resume(&[], None, 600);
    publish(&mut ledger, &[record(600, 5, 0)], 662);
    ledger.watched.clear();
    let (ledger, _) = resume_from(Stored::default(), Some(&ledger), 800);
    assert_eq!(ledger.orphaned_ids(window(600), None, 800_000), Orphaned::TooLate);
}

proptest! {
    /// Each window is first reported once, in order.
    /// This holds for every course of the clock and for every restart.
    #[test]
    fn every_window_is_reported_once_and_in_order(steps in proptest::collection::vec((0..200_000u64, any::<bool>()), 1..40)) {
        let (mut ledger, _) = resume(&[], None, 600);
        let (mut now, mut reported) = (600_000, BTreeMap::new());
        for (step, restart) in steps {
            now += step;
            if restart {
                let stored = Stored { reports: reported.clone(), from: Some(window(600)), ..Stored::default() };
                ledger = Ledger::resume(length(), SCHEDULE, stored, None, now).0;
            }
            for due in ledger.due(now, 3) {
                prop_assert!(due.end_ms() + 2000 <= now);
                let revisions = ledger.plan([(due, 1)], now).revisions;
                prop_assert_eq!(&revisions, &[PendingRevision { window: due, count: 1, revision: 0, late: 0, before: [0, 0] }]);
                ledger.prepared([record(due.start(), 1, 0)]);
                ledger.acknowledged(now);
                ledger.recorded();
                prop_assert!(reported.insert(due, report(1, 0)).is_none(), "{} twice", due);
            }
        }
        let starts: Vec<Window> = reported.keys().copied().collect();
        prop_assert!(starts.windows(2).all(|pair| pair[0].next() == pair[1]));
        prop_assert!(starts.first().is_none_or(|first| *first == window(600)));
    }
}

/// The first report may be of a window long ago, from a host with a slow clock.
/// The windows since then need not be reported. A window before the beginning is reported too.
#[test]
fn an_old_report_does_not_set_the_first_window() {
    let long_ago = || stored(&[(6_000, finished(report(1, 0)))]);
    let begun = Stored {
        from: Some(window(60_000)),
        newest: Some(window(6_000)),
        ..long_ago()
    };
    let (ledger, lost) = resume_from(begun, None, 60_100);
    assert!(lost.is_none());
    assert_eq!(ledger.next, window(60_000));
    let before = ledger.orphaned_ids(window(59_940), None, 60_100_000);
    assert!(matches!(before, Orphaned::Unreported));
    // Redis has lost everything and begun again, but this process has not.
    let (known, _) = resume_from(stored(&[(59_940, report(1, 0))]), None, 60_000);
    let emptied = Stored {
        from: Some(window(60_180)),
        ..Stored::default()
    };
    assert_eq!(resume_from(emptied, Some(&known), 60_180).0.next, window(60_000));
    // A leader has begun to publish the window, and has not recorded it.
    let publishing = Stored {
        pending: [(window(60_000), Pending::publish(&record(60_000, 1, 0)))].into(),
        ..long_ago()
    };
    let (ledger, _) = resume_from(publishing, None, 60_100);
    assert_eq!(ledger.next, window(60_060));
}

#[test]
fn an_idle_counter_is_not_due_until_it_is_used_again() {
    let (mut ledger, _) = resume(&[(600, report(1, 0))], None, 900);
    ledger.is_idle_after(Some(window(720)));
    assert_eq!(due(&ledger, 902_000), [660, 720]);
    assert_eq!(ledger.next_due_ms(), Some(722_000));
    publish(&mut ledger, &[record(660, 0, 0), record(720, 0, 0)], 902);
    assert_eq!(
        (due(&ledger, 9_000_000), ledger.next_due_ms(), ledger.idle_from()),
        (vec![], None, Some(window(780)))
    );
    // Reported windows are still watched.
    assert!(!ledger.is_at_rest());
    assert!(!ledger.is_awoken(Some(window(720))));
    assert!(ledger.is_awoken(Some(window(780))) && ledger.is_awoken(None));

    // It goes on at the window with ids, and is not responsible for those in between.
    let awake = Stored {
        awake: Some(window(1200)),
        ..stored(&[(720, report(0, 0))])
    };
    let (ledger, lost) = resume_from(awake, Some(&ledger), 1300);
    assert!(lost.is_none());
    assert_eq!(due(&ledger, 1_322_000), [1200, 1260]);
    assert_eq!(ledger.idle_from(), None);
    assert!(ledger.is_past(window(960)));
    let ids = ledger.orphaned_ids(window(960), None, 1_322_000);
    assert_eq!(ids, Orphaned::Unreported);
}

/// Nobody looked at the counter for days, and nothing is lost.
#[test]
fn a_counter_that_was_idle_for_days_has_lost_nothing() {
    let awake = Stored {
        awake: Some(window(600_000)),
        ..stored(&[(600, report(0, 0))])
    };
    let (ledger, lost) = resume_from(awake, None, 600_030);
    assert!(lost.is_none());
    assert_eq!(due(&ledger, 600_062_000), [600_000]);
}
