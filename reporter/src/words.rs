//! How windows, numbers and states are put in words: for the page and for `top`.

use jiff::Timestamp;
use verve_protocol::Window;

use crate::overview::{Seen, SeenWindow};

/// What [`row`] has, in its order.
pub const COLUMNS: [&str; 7] = [
    "Window (UTC)",
    "Unique",
    "Revision",
    "Requests",
    "Duplicates",
    "Too late",
    "Reported",
];

/// Where nothing is known.
pub const NONE: &str = "–";

/// What is said of a window.
pub fn row(seen: &SeenWindow) -> [String; COLUMNS.len()] {
    let none = || NONE.to_owned();
    let report = seen.report;
    [
        clock(seen.window),
        seen.unique().map_or_else(none, number),
        report.map_or_else(none, |report| report.revision.to_string()),
        number(requests(seen)),
        duplicates(seen),
        report
            .filter(|report| report.late > 0)
            .map_or_else(none, |report| number(report.late)),
        report.map_or_else(none, |report| {
            time(report.time) + if report.is_final { " final" } else { "" }
        }),
    ]
}

/// Requests, as far as it is known: statistics come a little later than the ids that they are of.
pub fn requests(seen: &SeenWindow) -> u64 {
    seen.requests().max(seen.unique().unwrap_or_default())
}

/// The share of duplicates among what was recorded.
pub fn duplicates(seen: &SeenWindow) -> String {
    seen.duplicates()
        .map_or_else(|| NONE.to_owned(), |share| format!("{:.1} %", 100.0 * share))
}

/// `1234567` as `1,234,567`.
pub fn number(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = (digits.as_bytes().rchunks(3).rev())
        .filter_map(|group| std::str::from_utf8(group).ok())
        .collect();
    groups.join(",")
}

/// A window's start, the time alone; with the day where windows are so long that it is needed.
pub fn clock(window: Window) -> String {
    let (day, time) = (window.to_string(), window.length().seconds());
    let (date, clock) = day.split_at(10);
    let clock = clock.trim_start_matches('T').trim_end_matches('Z');
    if time * 24 > 86_400 {
        format!("{date} {clock}")
    } else {
        clock.to_owned()
    }
}

/// A moment in Unix milliseconds, the time alone.
pub fn time(ms: u64) -> String {
    let time = Timestamp::from_millisecond(ms.cast_signed()).unwrap_or_default();
    time.strftime("%H:%M:%S").to_string()
}

/// One thing, and whether it is as it should be.
#[derive(Debug)]
pub struct State {
    pub is_good: bool,
    pub of: String,
    pub text: String,
    /// The heading of the runbook that says what to do where it is not good.
    pub runbook: &'static str,
}

/// How everything is, as this replica sees it.
pub fn states(seen: &Seen, replica: &str) -> Vec<State> {
    let state = |is_good, of: &str, text: String, runbook| State {
        is_good,
        of: of.to_owned(),
        text,
        runbook,
    };
    let mut states: Vec<State> = (seen.dependencies.iter())
        .map(|(name, problem)| {
            let error = problem.as_ref().map(|problem| problem.error.clone());
            let text = error.unwrap_or_else(|| "answers".to_owned());
            state(problem.is_none(), name, text, "VerveDependencyDown")
        })
        .collect();
    let leader = match seen.leader.as_deref() {
        Some(leader) if leader == replica => "held by this replica".to_owned(),
        Some(leader) => format!("held by replica {leader}"),
        None => "held by nobody".to_owned(),
    };
    states.push(state(seen.leader.is_some(), "Lease", leader, "VerveNobodyReports"));
    let windows = match seen.overdue_s {
        0 => "reported in time".to_owned(),
        overdue_s => format!("overdue for {overdue_s} s"),
    };
    states.push(state(seen.overdue_s == 0, "Windows", windows, "VerveWindowsOverdue"));
    if seen.silent_s() > 0 {
        let silent = number(seen.silent_s());
        let text = format!("none for {silent} s: no requests come, or edge hosts do not reach Redis and spool them");
        states.push(state(false, "Ids", text, "VerveNoIds"));
    }
    if seen.spooled() > 0 {
        let text = format!("{} ids and callback jobs wait on edge hosts", number(seen.spooled()));
        states.push(state(false, "Spools", text, "VerveSpoolStays"));
    }
    states
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(number(n), text);
        }
    }
}
