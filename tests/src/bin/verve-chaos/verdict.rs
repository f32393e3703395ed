//! Compares the results with the promises. This module has no side effects.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use verve_protocol::Window;
use verve_tests::kafka::Record;

use crate::series::Series;
use crate::settle::{Observed, fixed_records};
use crate::tally::Tally;

/// One promise, and the cases in which it was not kept.
pub struct Check {
    /// The promise, with the name of its series if it has one.
    pub name: String,
    /// A short description of the result.
    pub seen: String,
    /// The violations of the promise.
    pub problems: Vec<String>,
}

/// Compares the results for these series with the answers to clients.
///
/// # Errors
/// Fails if a record cannot be parsed.
pub fn verdict(all: &[Series], tally: &Tally, seen: &Observed) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    for series in all {
        let (records, windows) = (series.records(&seen.records), &series.windows);
        let (last, tally) = (last_records(&records)?, &series.tally(tally));
        // A named counter is known once an id has been added to it.
        let since = if series.is_named() {
            known(windows, tally)
        } else {
            windows
        };
        let of_it = [
            gaps(since, &last),
            order(&records)?,
            counts(windows, tally, &last),
            total(windows, tally, &last),
        ];
        checks.extend(of_it.into_iter().map(|check| Check {
            name: check.name + &series.name(),
            ..check
        }));
    }
    checks.extend([
        callbacks(tally, seen),
        fixed(&last_records(&fixed_records(all, seen))?, seen),
        check("nothing is left to do", String::new(), seen.left.clone()),
    ]);
    Ok(checks)
}

fn check(name: &str, seen: String, problems: Vec<String>) -> Check {
    Check {
        name: name.to_owned(),
        seen,
        problems,
    }
}

/// Returns the windows since the first one in which an id was certainly recorded.
fn known<'a>(windows: &'a [Window], tally: &Tally) -> &'a [Window] {
    let end = windows.last().map_or(0, |window| number(*window));
    let bounds = tally.windows(end);
    let is_used = |window: &Window| bounds.get(&number(*window)).is_some_and(|bounds| *bounds.start() > 0);
    let first = windows.iter().position(is_used).unwrap_or(windows.len());
    &windows[first..]
}

/// The revision and the count of each key's last record.
type Last = BTreeMap<String, (u64, u64)>;

fn last_records(records: &[Record]) -> Result<Last> {
    records
        .iter()
        .map(|record| Ok((record.key.clone(), read(record)?)))
        .collect()
}

fn read(record: &Record) -> Result<(u64, u64)> {
    let read = || Some((record.header("revision").parse().ok()?, record.value.parse().ok()?));
    read().with_context(|| format!("not a record: {record:?}"))
}

fn gaps(windows: &[Window], last: &Last) -> Check {
    let missing = windows.iter().filter(|window| !last.contains_key(&window.to_string()));
    check(
        "each window has a record",
        format!("{} windows", windows.len()),
        missing.map(|window| format!("no record of {window}")).collect(),
    )
}

/// Checks that a window's revisions and counts only grow. A record may be repeated.
fn order(records: &[Record]) -> Result<Check> {
    let (mut latest, mut problems, mut again) = (Last::new(), Vec::new(), 0);
    for record in records {
        let (revision, count) = read(record)?;
        if let Some((before, counted)) = latest.insert(record.key.clone(), (revision, count)) {
            again += usize::from(before == revision);
            if revision < before || count < counted || revision > before + 1 {
                let key = &record.key;
                problems.push(format!(
                    "{key}: revision {before} ({counted}), then {revision} ({count})"
                ));
            }
        } else if revision != 0 {
            problems.push(format!("{}: begins with revision {revision}", record.key));
        }
    }
    let seen = format!("{} records, {again} of them again", records.len());
    Ok(check("revisions never go back", seen, problems))
}

fn counts(windows: &[Window], tally: &Tally, last: &Last) -> Check {
    let end = windows.last().map_or(0, |window| number(*window));
    let bounds = tally.windows(end);
    let wrong = windows.iter().filter_map(|window| {
        let (_, count) = last.get(&window.to_string())?;
        let bounds = bounds.get(&number(*window)).cloned().unwrap_or(0..=0);
        let (least, most) = (bounds.start(), bounds.end());
        (!bounds.contains(count)).then(|| format!("{window}: {count}, but {least} to {most} ids were recorded"))
    });
    let corrected = last.values().filter(|(revision, _)| *revision > 0).count();
    check(
        "each window's count is right",
        format!("{corrected} corrected"),
        wrong.collect(),
    )
}

fn total(windows: &[Window], tally: &Tally, last: &Last) -> Check {
    let end = windows.last().map_or(0, |window| number(*window));
    let bounds = tally.total(end);
    let sum = windows
        .iter()
        .filter_map(|window| last.get(&window.to_string()))
        .map(|(_, count)| count)
        .sum();
    let seen = format!("{} <= {sum} <= {}", bounds.start(), bounds.end());
    let problems = if bounds.contains(&sum) {
        vec![]
    } else {
        vec![format!("not true: {seen}")]
    };
    check("the counts add up", seen, problems)
}

fn callbacks(tally: &Tally, seen: &Observed) -> Check {
    let lost = tally
        .jobs
        .iter()
        .filter(|job| !seen.delivered.contains(job) && !seen.dead.contains(job));
    check(
        "each callback was delivered",
        format!("{} delivered, {} given up on", seen.delivered.len(), seen.dead.len()),
        lost.map(|job| format!("the callback {job} was lost")).collect(),
    )
}

/// Checks that the fixed callback received each window's last revision.
///
/// This applies to each window with a record.
fn fixed(last: &Last, seen: &Observed) -> Check {
    let latest: BTreeSet<(String, u64)> = last
        .iter()
        .map(|(key, (revision, _))| (key.clone(), *revision))
        .collect();
    let missing = latest.difference(&seen.notified);
    check(
        "the fixed callback received each report",
        format!("{} received", seen.notified.len()),
        missing
            .map(|(key, revision)| format!("no callback for {key} revision {revision}"))
            .collect(),
    )
}

/// Returns the window's number, as in the tally.
fn number(window: Window) -> u64 {
    window.start() / window.length().seconds()
}

#[cfg(test)]
mod tests {
    use verve_protocol::{CounterName, WindowLengths};
    use verve_tests::clock;

    use super::*;
    use crate::tally::Request;

    fn windows() -> [Window; 2] {
        let first = clock::length(2).window_starting(1_795_383_000).expect("a start");
        [first, first.next()]
    }

    fn record(window: Window, count: u64, revision: u64) -> Record {
        Record {
            key: window.to_string(),
            value: count.to_string(),
            headers: [
                ("revision".to_owned(), revision.to_string()),
                ("window-seconds".to_owned(), window.length().to_string()),
            ]
            .into(),
            partition: 0,
            offset: 0,
            timestamp_ms: 0,
        }
    }

    /// Creates a tally of three ids.
    ///
    /// Two ids are in the first window, one of them with a callback. One id may be in the second.
    fn tally() -> Tally {
        let at = number(windows()[0]);
        let mut tally = Tally::default();
        for (id, sent, ok) in [(1, at, Some(at)), (2, at, Some(at)), (3, at + 1, None)] {
            tally.note(Request { id, sent, ok }, "", (id == 1).then_some(7));
        }
        tally
    }

    fn seen(records: Vec<Record>) -> Observed {
        let notified = records
            .iter()
            .map(|r| (r.key.clone(), read(r).expect("readable").0))
            .collect();
        Observed {
            records,
            delivered: [7].into(),
            notified,
            ..Observed::default()
        }
    }

    /// Returns the names of the promises that were not kept.
    fn broken(seen: &Observed) -> Vec<String> {
        broken_to(&series("2", &[None]), seen)
    }

    /// Returns the series with the windows of [`windows`].
    fn series(lengths: &str, counters: &[Option<CounterName>]) -> Vec<Series> {
        let lengths: WindowLengths = lengths.parse().expect("lengths");
        let mut all = Series::all(counters, &lengths, clock::now_ms());
        for series in &mut all {
            let length = series.windows[0].length();
            series.windows = windows()
                .map(|window| length.window_at_ms(window.start() * 1000))
                .to_vec();
            series.windows.dedup();
        }
        all
    }

    fn broken_to(all: &[Series], seen: &Observed) -> Vec<String> {
        let checks = verdict(all, &tally(), seen).expect("readable");
        let broken = checks.into_iter().filter(|check| !check.problems.is_empty());
        broken.map(|check| check.name).collect()
    }

    #[test]
    fn valid_input_passes() {
        let [first, second] = windows();
        for unanswered in [0, 1] {
            let records = vec![record(first, 2, 0), record(second, unanswered, 0)];
            assert_eq!(broken(&seen(records)), [""; 0]);
        }
        let corrected = vec![
            record(first, 1, 0),
            record(first, 1, 0),
            record(second, 0, 0),
            record(first, 2, 1),
        ];
        assert_eq!(broken(&seen(corrected)), [""; 0]);
    }

    #[test]
    fn each_kind_of_wrong_is_found() {
        let [first, second] = windows();
        let (right, count, sum) = (record(first, 2, 0), "each window's count is right", "the counts add up");
        assert_eq!(broken(&seen(vec![right.clone()])), ["each window has a record"]);
        assert_eq!(
            broken(&seen(vec![record(first, 1, 0), record(second, 0, 0)])),
            [count, sum]
        );
        assert_eq!(broken(&seen(vec![right.clone(), record(second, 2, 0)])), [count, sum]);
        // The sum is correct, but the windows are not.
        assert_eq!(broken(&seen(vec![record(first, 1, 0), record(second, 1, 0)])), [count]);
        for wrong in [
            vec![record(first, 1, 1), record(first, 2, 0)],
            vec![record(first, 3, 0), record(first, 2, 1)],
            vec![record(first, 1, 0), record(first, 2, 2)],
            vec![record(first, 2, 1)],
        ] {
            let records = [wrong, vec![record(second, 0, 0)]].concat();
            assert_eq!(broken(&seen(records)), ["revisions never go back"]);
        }
        let all = || seen(vec![right.clone(), record(second, 0, 0)]);
        let mut lost = all();
        lost.delivered.clear();
        assert_eq!(broken(&lost), ["each callback was delivered"]);
        lost.dead.insert(7);
        assert_eq!(broken(&lost), [""; 0]);
        let mut missing = all();
        missing.notified.pop_first();
        assert_eq!(broken(&missing), ["the fixed callback received each report"]);
        let mut left = all();
        left.left.push("something".to_owned());
        assert_eq!(broken(&left), ["nothing is left to do"]);
        assert!(verdict(&series("2", &[None]), &tally(), &seen(vec![])).is_ok());
        let unreadable = Record {
            value: "many".to_owned(),
            ..right.clone()
        };
        let unreadable = Observed {
            records: vec![unreadable],
            ..Observed::default()
        };
        assert!(verdict(&series("2", &[None]), &tally(), &unreadable).is_err());
    }

    #[test]
    fn each_series_is_looked_at_by_itself() {
        let [first, second] = windows();
        // Of three ids, the counter has one, and perhaps the third.
        let all = series("2,6", &[None, Some("go".parse().expect("a name"))]);
        let named = |record: Record, suffix: &str, seconds: u64| Record {
            key: format!("go/{}{suffix}", record.key),
            headers: record
                .headers
                .into_iter()
                .chain([
                    ("counter".to_owned(), "go".to_owned()),
                    ("window-seconds".to_owned(), seconds.to_string()),
                ])
                .collect(),
            ..record
        };
        let six = clock::length(6).window_at_ms(first.start() * 1000);
        let long = Record {
            key: format!("{six}/PT6S"),
            ..record(six, 1, 0)
        };
        let unnamed = seen(vec![record(first, 1, 0), record(second, 0, 0)]);
        let with = |records: &[Record]| Observed {
            records: [&unnamed.records, std::slice::from_ref(&long), records].concat(),
            notified: unnamed.notified.clone(),
            delivered: unnamed.delivered.clone(),
            ..Observed::default()
        };
        let right = [
            named(record(first, 1, 0), "", 2),
            named(record(second, 0, 0), "", 2),
            named(record(six, 2, 0), "/PT6S", 6),
        ];
        assert_eq!(broken_to(&all, &with(&right)), [""; 0]);
        assert_eq!(
            broken_to(&all, &with(&right[..1])),
            [
                "each window has a record (go)",
                "each window has a record (go, PT6S)",
                "the counts add up (go, PT6S)"
            ]
        );
        let wrong = [
            named(record(first, 2, 0), "", 2),
            right[1].clone(),
            named(record(six, 0, 0), "/PT6S", 6),
        ];
        assert_eq!(
            broken_to(&all, &with(&wrong)),
            [
                "each window's count is right (go)",
                "each window's count is right (go, PT6S)",
                "the counts add up (go, PT6S)"
            ]
        );
        let back = [named(record(first, 1, 1), "", 2), right[1].clone(), right[2].clone()];
        assert_eq!(broken_to(&all, &with(&back)), ["revisions never go back (go)"]);
    }
}
