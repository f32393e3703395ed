//! The answers that clients received, and what follows for the counts.
//!
//! This module has no side effects. Windows are consecutive numbers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;

/// One request for an id, as seen by its client.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The id.
    pub id: i64,
    /// The window in which the request was sent.
    pub sent: u64,
    /// The window in which `ok` was received.
    ///
    /// Without `ok`, the id may have been recorded at any time since it was sent.
    pub ok: Option<u64>,
}

/// All requests of a run.
#[derive(Default)]
pub struct Tally {
    requests: HashMap<i64, Vec<Request>>,
    /// The callback jobs whose requests were answered `ok`.
    pub jobs: BTreeSet<u64>,
    /// The number of requests by outcome.
    pub outcomes: BTreeMap<String, usize>,
}

/// The minimum and the maximum of a count.
pub type Bounds = RangeInclusive<u64>;

impl Tally {
    /// Adds a request.
    pub fn note(&mut self, request: Request, outcome: &str, job: Option<u64>) {
        self.requests.entry(request.id).or_default().push(request);
        *self.outcomes.entry(outcome.to_owned()).or_default() += 1;
        if request.ok.is_some() {
            self.jobs.extend(job);
        }
    }

    /// Returns the requests for some of the ids, by longer windows.
    ///
    /// A longer window has so many of the windows. The callback jobs are not included.
    pub fn of(&self, has: impl Fn(i64) -> bool, windows: u64) -> Self {
        let longer = |request: &Request| Request {
            sent: request.sent / windows,
            ok: request.ok.map(|ok| ok / windows),
            ..*request
        };
        let requests = self.requests.iter().filter(|(id, _)| has(**id));
        Self {
            requests: requests
                .map(|(id, requests)| (*id, requests.iter().map(longer).collect()))
                .collect(),
            ..Self::default()
        }
    }

    /// Returns the number of requests.
    pub fn requests(&self) -> usize {
        self.outcomes.values().sum()
    }

    /// Returns the bounds of each window's count, for the windows up to `last`.
    pub fn windows(&self, last: u64) -> BTreeMap<u64, Bounds> {
        let (mut least, mut most) = (BTreeMap::<u64, u64>::new(), BTreeMap::<u64, u64>::new());
        for requests in self.requests.values() {
            let certain: BTreeSet<u64> = requests
                .iter()
                .filter(|r| r.ok == Some(r.sent))
                .map(|r| r.sent)
                .collect();
            certain
                .iter()
                .for_each(|window| *least.entry(*window).or_default() += 1);
            possible(requests, last)
                .iter()
                .for_each(|window| *most.entry(*window).or_default() += 1);
        }
        let bounds = |(window, most)| (window, least.get(&window).copied().unwrap_or(0)..=most);
        most.into_iter().map(bounds).collect()
    }

    /// Returns the bounds of the sum of all windows' counts.
    ///
    /// An id counts once in each window in which it was recorded.
    pub fn total(&self, last: u64) -> Bounds {
        let all = || self.requests.values();
        let most = |requests: &Vec<Request>| possible(requests, last).len().min(requests.len());
        let (least, most): (usize, usize) = (all().map(|requests| fewest(requests)).sum(), all().map(most).sum());
        least as u64..=most as u64
    }
}

/// Returns the windows in which the id of these requests may have been recorded.
fn possible(requests: &[Request], last: u64) -> BTreeSet<u64> {
    requests
        .iter()
        .flat_map(|request| request.sent..=request.ok.unwrap_or(last))
        .collect()
}

/// Returns the least number of windows in which the requests' id was recorded.
///
/// Each request that was answered `ok` was recorded in one of the windows that it spans.
fn fewest(requests: &[Request]) -> usize {
    let mut spans: Vec<(u64, u64)> = requests.iter().filter_map(|r| Some((r.ok?, r.sent))).collect();
    spans.sort_unstable();
    let (mut windows, mut at) = (0, None);
    for (ok, sent) in spans {
        // The latest window of this request is also in as many of the later requests as any other
        // of its windows.
        if at.is_none_or(|at| at < sent) {
            windows += 1;
            at = Some(ok);
        }
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(requests: &[(i64, u64, Option<u64>)]) -> Tally {
        let mut tally = Tally::default();
        for (id, sent, ok) in requests {
            let request = Request {
                id: *id,
                sent: *sent,
                ok: *ok,
            };
            tally.note(request, if ok.is_some() { "new" } else { "no answer" }, Some(*sent));
        }
        tally
    }

    #[test]
    fn an_id_answered_within_a_window_is_certainly_in_it() {
        let tally = tally(&[(1, 5, Some(5)), (1, 5, Some(5)), (2, 5, Some(5)), (3, 6, Some(6))]);
        assert_eq!(tally.windows(9), [(5, 2..=2), (6, 1..=1)].into());
        assert_eq!(tally.total(9), 3..=3);
        assert_eq!(tally.requests(), 4);
    }

    #[test]
    fn ids_that_crossed_a_boundary_are_in_one_of_its_windows() {
        let one = tally(&[(1, 5, Some(6))]);
        assert_eq!(one.windows(9), [(5, 0..=1), (6, 0..=1)].into());
        assert_eq!(one.total(9), 1..=1);
        // The repetition may be in another window or in the same one.
        let two = tally(&[(1, 5, Some(6)), (1, 6, Some(7))]);
        assert_eq!(two.total(9), 1..=2);
        let apart = tally(&[(1, 5, Some(5)), (1, 6, Some(6)), (1, 4, Some(6))]);
        assert_eq!(apart.windows(9), [(4, 0..=1), (5, 1..=1), (6, 1..=1)].into());
        assert_eq!(apart.total(9), 2..=3);
    }

    #[test]
    fn ids_of_one_counter_in_longer_windows() {
        let tally = tally(&[(1, 5, Some(5)), (1, 6, Some(6)), (2, 6, Some(6)), (3, 7, Some(9))]);
        let odd = tally.of(|id| id % 2 == 1, 4);
        assert_eq!(odd.windows(2), [(1, 1..=2), (2, 0..=1)].into());
        assert_eq!(odd.total(2), 2..=2);
    }

    #[test]
    fn an_unanswered_id_may_count_once_in_any_later_window() {
        let tally = tally(&[(1, 5, None), (2, 6, Some(6)), (2, 6, None)]);
        assert_eq!(tally.windows(7), [(5, 0..=1), (6, 1..=2), (7, 0..=2)].into());
        assert_eq!(tally.total(7), 1..=3);
        assert_eq!(tally.jobs, [6].into());
    }
}
