//! Formats windows, numbers and states as text, for the page and for `top`.

use jiff::Timestamp;
use verve_protocol::Window;

use crate::overview::{Snapshot, WindowSnapshot};

/// The columns of [`row`], in its order.
pub const COLUMNS: [&str; 7] = [
    "Window (UTC)",
    "Unique",
    "Revision",
    "Requests",
    "Duplicates",
    "Too late",
    "Reported",
];

/// The text for an unknown value.
pub const NONE: &str = "–";

/// Returns the cells of a window.
pub fn row(snapshot: &WindowSnapshot) -> [String; COLUMNS.len()] {
    let none = || NONE.to_owned();
    let report = snapshot.report;
    [
        clock(snapshot.window),
        snapshot.unique().map_or_else(none, number),
        report.map_or_else(none, |report| report.revision.to_string()),
        number(requests(snapshot)),
        duplicates(snapshot),
        report
            .filter(|report| report.late > 0)
            .map_or_else(none, |report| number(report.late)),
        report.map_or_else(none, |report| {
            time(report.time) + if report.is_final { " final" } else { "" }
        }),
    ]
}

/// Returns the known requests.
///
/// Statistics arrive a little later than the ids that they are about.
pub fn requests(snapshot: &WindowSnapshot) -> u64 {
    snapshot.requests().max(snapshot.unique().unwrap_or_default())
}

/// Returns the share of duplicates among the recorded requests.
pub fn duplicates(snapshot: &WindowSnapshot) -> String {
    snapshot
        .duplicates()
        .map_or_else(|| NONE.to_owned(), |share| format!("{:.1} %", 100.0 * share))
}

/// Formats `1234567` as `1,234,567`.
pub fn number(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = (digits.as_bytes().rchunks(3).rev())
        .filter_map(|group| std::str::from_utf8(group).ok())
        .collect();
    groups.join(",")
}

/// Returns the time of a window's start, with the date if windows are long.
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

/// Formats a time in Unix milliseconds, without the date.
pub fn time(ms: u64) -> String {
    let time = Timestamp::from_millisecond(ms.cast_signed()).unwrap_or_default();
    time.strftime("%H:%M:%S").to_string()
}

/// The state of one thing, and whether it is good.
#[derive(Debug)]
pub struct State {
    pub is_good: bool,
    pub of: String,
    pub text: String,
    /// The heading of the runbook for the case that the state is not good.
    pub runbook: &'static str,
}

/// Returns the state of everything, as this replica sees it.
pub fn states(snapshot: &Snapshot, replica: &str) -> Vec<State> {
    let state = |is_good, of: &str, text: String, runbook| State {
        is_good,
        of: of.to_owned(),
        text,
        runbook,
    };
    let mut states: Vec<State> = (snapshot.dependencies.iter())
        .map(|(name, problem)| {
            let error = problem.as_ref().map(|problem| problem.error.clone());
            let text = error.unwrap_or_else(|| "answers".to_owned());
            state(problem.is_none(), name, text, "VerveDependencyDown")
        })
        .collect();
    let leader = match snapshot.leader.as_deref() {
        Some(leader) if leader == replica => "held by this replica".to_owned(),
        Some(leader) => format!("held by replica {leader}"),
        None => "held by nobody".to_owned(),
    };
    states.push(state(snapshot.leader.is_some(), "Lease", leader, "VerveNobodyReports"));
    let windows = match snapshot.overdue_s {
        0 => "reported in time".to_owned(),
        overdue_s => format!("overdue for {overdue_s} s"),
    };
    states.push(state(
        snapshot.overdue_s == 0,
        "Windows",
        windows,
        "VerveWindowsOverdue",
    ));
    if snapshot.silent_s() > 0 {
        let silent = number(snapshot.silent_s());
        let text = format!("none for {silent} s: no requests come, or edge hosts do not reach Redis and spool them");
        states.push(state(false, "Ids", text, "VerveNoIds"));
    }
    if snapshot.spooled() > 0 {
        let text = format!(
            "{} ids and callback jobs wait on edge hosts",
            number(snapshot.spooled())
        );
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
