//! Checks Verve's promises.
//!
//! Compares the answers that clients received with the records that consumers read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use verve_counter_core::answer::{Answer, Outcome};
use verve_protocol::{CounterName, Window, WindowLength, WindowRecord};

use crate::endpoints::Received;
use crate::kafka::Committed;

/// A request.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Its id.
    pub id: i64,
    /// The name of the counter, if it has one.
    pub counter: Option<CounterName>,
    /// The endpoint of the callback, if the request asked for one.
    ///
    /// No other request uses this endpoint.
    pub callback: Option<String>,
    /// The window that was open by the clock of the machine.
    pub window: Window,
    /// The window that was open by the true time.
    pub true_window: Window,
    /// The true time of the request, in Unix milliseconds.
    pub at_ms: u64,
    /// The true time of the answer, in Unix milliseconds.
    ///
    /// Without an answer, it is that of the request.
    pub answered_ms: u64,
    /// The answer; `None` if the instance was killed before.
    pub answer: Option<Answer>,
    /// Whether the id may have been spooled, although the answer does not say so.
    pub may_be_spooled: bool,
}

impl Attempt {
    /// Returns the same request, for windows of this length.
    ///
    /// The answer is about the main window. In a longer window, the id may be known or not, and it
    /// may be spooled for it alone.
    #[must_use]
    pub fn within(&self, length: WindowLength) -> Self {
        if self.window.length() == length {
            return self.clone();
        }
        let answer = match self.answer {
            Some(Ok(Outcome::New)) => Some(Ok(Outcome::Duplicate)),
            answer => answer,
        };
        Self {
            window: self.window.within(length),
            true_window: self.true_window.within(length),
            answer,
            may_be_spooled: true,
            ..self.clone()
        }
    }

    fn may_be_spooled(&self) -> bool {
        self.may_be_spooled || matches!(self.answer, Some(Ok(Outcome::Spooled)))
    }
}

/// A loss: Redis lost what was written during a time.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// When the lost writes begin, in Unix milliseconds.
    pub from_ms: u64,
    /// When they end, in Unix milliseconds.
    pub at_ms: u64,
    /// Whether the lost writes may include ids that were answered `ok`.
    pub has_ids: bool,
}

/// The setup of a run, and what Redis lost during the run.
#[derive(Clone, Debug)]
pub struct Happened {
    /// The length of windows.
    pub length: WindowLength,
    /// Whether Redis is a cluster.
    pub is_cluster: bool,
    /// How long a commit in Kafka may take, in milliseconds.
    pub commit_ms: u64,
    /// How long a named counter without ids is reported, in milliseconds.
    pub idle_ms: u64,
    /// The losses, in the order of time.
    pub losses: Vec<Loss>,
}

impl Happened {
    /// Returns whether an id that was answered `ok` may be lost, or its callback.
    fn may_have_lost(&self, attempt: &Attempt) -> bool {
        let mut losses = self.losses.iter().filter(|loss| loss.has_ids);
        let within_ms = if attempt.may_be_spooled() {
            BROUGHT_MS
        } else {
            RECORDED_MS
        };
        losses.any(|loss| attempt.at_ms <= loss.at_ms + KNOWN_MS && attempt.at_ms + within_ms >= loss.from_ms)
    }

    /// Returns whether Redis might no longer know that this record was reported.
    fn may_have_forgotten(&self, committed: &Committed) -> bool {
        self.losses.iter().any(|loss| self.concerns(loss, committed))
    }

    /// Returns whether Redis might have other ids than a lost report counted.
    ///
    /// One server that fails over to its replica returns to an earlier state, with the ids of then.
    /// In a cluster, the node with the reports returns to that state, and the others do not.
    fn may_have_other_ids(&self, committed: &Committed) -> bool {
        let mut losses = self.losses.iter();
        losses.any(|loss| (self.is_cluster || loss.from_ms == 0) && self.concerns(loss, committed))
    }

    /// Returns from when on a named counter might not be reported after this attempt.
    ///
    /// The instance may have registered the counter earlier in the window.
    fn idle_from_ms(&self, attempt: &Attempt) -> u64 {
        let at_ms = attempt.at_ms.min(attempt.window.end_ms());
        (at_ms + self.idle_ms).saturating_sub(2000 * self.length.seconds())
    }

    fn concerns(&self, loss: &Loss, committed: &Committed) -> bool {
        let commits_ms = COMMITS_MS.max(6 * self.commit_ms);
        committed.at_ms <= loss.at_ms + commits_ms && committed.at_ms + NOTED_MS >= loss.from_ms
    }

    /// Returns whether Redis might no longer know that this window has to be reported.
    fn may_have_skipped(&self, window: Window) -> bool {
        let mut losses = self.losses.iter();
        losses
            .any(|loss| window.start() * 1000 <= loss.at_ms + NOTED_MS && window.end_ms() + BROUGHT_MS >= loss.from_ms)
    }
}

/// How long an instance may answer by facts that Redis has lost, in milliseconds.
const KNOWN_MS: u64 = 2000;
/// How long it may take until an id is in Redis or in the spool, in milliseconds.
const RECORDED_MS: u64 = 10_000;
/// How long Redis may need to learn what Kafka has, in milliseconds.
///
/// Also, how long Redis may take until it is reachable again.
const NOTED_MS: u64 = 40_000;
/// How long Kafka may take to publish what Redis lost meanwhile, in milliseconds.
///
/// If commits are slow, this may take as long as three commits, each after one of other counters.
const COMMITS_MS: u64 = 10_000;

/// How long the report of a window may take in the end, in milliseconds.
///
/// If commits are slow, it waits for some of them.
const CERTAIN_MS: u64 = 30_000;

/// How long the content of a spool may take to arrive in Redis, in milliseconds.
const BROUGHT_MS: u64 = 120_000;

/// The requests of a window.
#[derive(Default)]
struct Sent {
    requests: u64,
    /// Whether some of the ids may be lost.
    is_lost: bool,
    /// The ids of all requests.
    tried: BTreeSet<i64>,
    /// The ids that were answered `ok`, except those that may be lost.
    accepted: BTreeSet<i64>,
}

/// A problem: a promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The window of the problem, if it concerns one.
    pub window: Option<Window>,
    /// The description.
    pub what: String,
}

impl Wrong {
    /// Creates a problem that concerns no window.
    #[must_use]
    pub const fn general(what: String) -> Self {
        Self { window: None, what }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.window {
            Some(window) => write!(f, "{window}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

/// Returns the problems of all counters.
///
/// `now_ms` is a time in Unix milliseconds at which everything should be settled.
#[must_use]
pub fn of(attempts: &[Attempt], committed: &[Committed], happened: &Happened, now_ms: u64) -> Vec<Wrong> {
    let accepted = attempts.iter().filter(|attempt| matches!(attempt.answer, Some(Ok(_))));
    let mut counters: BTreeSet<&Option<CounterName>> = accepted.map(|attempt| &attempt.counter).collect();
    counters.insert(&None);
    counters.extend(committed.iter().map(|committed| &committed.counter));
    let of_counter = |counter: &Option<CounterName>| {
        let attempts = attempts.iter().filter(|attempt| attempt.counter == *counter);
        let committed = committed.iter().filter(|committed| committed.counter == *counter);
        let attempts: Vec<&Attempt> = attempts.collect();
        let committed: Vec<&Committed> = committed.collect();
        let mut wrong = of_one(&attempts, &committed, happened, now_ms);
        if let Some(name) = counter {
            wrong
                .iter_mut()
                .for_each(|wrong| wrong.what.insert_str(0, &format!("{name}: ")));
        }
        wrong
    };
    counters.into_iter().flat_map(of_counter).collect()
}

/// Returns the problems with callbacks.
///
/// Each callback of an accepted request must have been called, or be a dead letter. The same is
/// true for the fixed callback for each report.
#[must_use]
pub fn of_callbacks(
    attempts: &[Attempt],
    committed: &[Committed],
    received: &[Received],
    dead: &[Vec<String>],
    fixed: &str,
    happened: &Happened,
) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    let field = |fields: &[String], name: &str| {
        let pair = fields.chunks(2).find(|pair| pair[0] == name);
        pair.map(|pair| pair[1].clone())
    };
    let call_of = |endpoint: &str, counter: Option<&CounterName>, window: Window, revision: Option<u64>| {
        let (counter, revision) = (
            counter.map(CounterName::to_string),
            revision.map(|revision| revision.to_string()),
        );
        (endpoint.to_owned(), counter, window.start().to_string(), revision)
    };
    // The endpoint, counter, window start and revision of each callback that was called or is dead.
    let mut done: BTreeSet<(String, Option<String>, String, Option<String>)> = dead
        .iter()
        .filter_map(|fields| {
            let (endpoint, window) = (field(fields, "endpoint")?, field(fields, "window")?);
            Some((endpoint, field(fields, "counter"), window, field(fields, "revision")))
        })
        .collect();
    done.extend(received.iter().map(|received| {
        call_of(
            &received.endpoint,
            received.counter.as_ref(),
            received.window,
            received.revision,
        )
    }));
    let is_done = |endpoint: &str, counter: Option<&CounterName>, window: Window, revision: Option<u64>| {
        done.contains(&call_of(endpoint, counter, window, revision))
    };
    for attempt in attempts {
        if let (Some(callback), Some(Ok(_))) = (&attempt.callback, attempt.answer)
            && !is_done(callback, attempt.counter.as_ref(), attempt.window, None)
            && !happened.may_have_lost(attempt)
        {
            wrong.push(Wrong {
                window: Some(attempt.window),
                what: format!("{callback} was never called, and is not dead"),
            });
        }
    }
    let is_known = |committed: &&Committed| committed.counter.is_none() && !happened.may_have_forgotten(committed);
    let unnamed = committed.iter().filter(is_known);
    let reports: BTreeSet<(Window, u64)> = unnamed
        .map(|committed| (committed.record.window, committed.record.revision))
        .collect();
    for (window, revision) in reports {
        if !is_done(fixed, None, window, Some(revision)) {
            wrong.push(Wrong {
                window: Some(window),
                what: format!("{fixed} was never called with revision {revision}, and that is not dead"),
            });
        }
    }
    let mut tried: BTreeMap<(&Option<CounterName>, Window), BTreeSet<i64>> = BTreeMap::new();
    for attempt in attempts {
        let tried = tried.entry((&attempt.counter, attempt.window)).or_default();
        tried.insert(attempt.id);
    }
    for received in received {
        let tried = tried
            .get(&(&received.counter, received.window))
            .map_or(0, BTreeSet::len);
        if received.count > tried as u64 {
            wrong.push(Wrong {
                window: Some(received.window),
                what: format!("{tried} ids were tried, and the call was {received:?}"),
            });
        }
    }
    wrong
}

fn of_one(attempts: &[&Attempt], committed: &[&Committed], happened: &Happened, now_ms: u64) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    let is_named = attempts.iter().any(|attempt| attempt.counter.is_some());
    let mut add = |window: Window, what: String| {
        wrong.push(Wrong {
            window: Some(window),
            what,
        });
    };
    let mut last: BTreeMap<Window, &Committed> = BTreeMap::new();
    let mut most: BTreeMap<Window, u64> = BTreeMap::new();
    // When the first record was published after which Redis might have other ids.
    let mut forgotten_ms: BTreeMap<Window, u64> = BTreeMap::new();
    for committed in committed {
        let record = &committed.record;
        let most = most.entry(record.window).or_default();
        *most = record.count.saturating_add(record.late).max(*most);
        if happened.may_have_other_ids(committed) {
            forgotten_ms.entry(record.window).or_insert(committed.at_ms);
        }
        if committed.at_ms < record.window.end_ms() {
            add(record.window, format!("reported before its end: {record:?}"));
        }
        if let Some(earlier) = last.insert(record.window, committed) {
            let before = &earlier.record;
            let follows = record.revision > before.revision || record == before;
            if (!follows || record.count < before.count) && !happened.may_have_forgotten(earlier) {
                add(record.window, format!("{before:?} is followed by {record:?}"));
            }
        }
    }
    let mut sent: BTreeMap<Window, Sent> = BTreeMap::new();
    let mut new: BTreeSet<(Window, i64)> = BTreeSet::new();
    for attempt in attempts {
        let sent = sent.entry(attempt.window).or_default();
        sent.requests += 1;
        let is_lost = happened.may_have_lost(attempt);
        sent.is_lost |= is_lost;
        sent.tried.insert(attempt.id);
        if let Some(Ok(outcome)) = attempt.answer {
            // If Redis has lost a report, it does not know which ids came after it.
            let forgotten_ms = forgotten_ms.get(&attempt.window);
            let was_before = forgotten_ms.is_none_or(|at_ms| !attempt.may_be_spooled() && attempt.at_ms < *at_ms);
            if !is_lost && was_before {
                sent.accepted.insert(attempt.id);
            }
            // Ids that arrive after the window is final are not compared with earlier ids.
            let has_late = last.get(&attempt.window).is_some_and(|last| last.record.late > 0);
            if outcome == Outcome::New && !new.insert((attempt.window, attempt.id)) && !has_late && !sent.is_lost {
                add(attempt.window, format!("id {} was new twice", attempt.id));
            }
        }
    }
    for (window, last) in &last {
        let requests = sent.get(window).map_or(0, |sent| sent.requests);
        // A late id whose answer was lost is new again at the next attempt, if it was kept apart in
        // between.
        if last.record.requests > requests && last.record.late == 0 {
            add(
                *window,
                format!("there were {requests} requests, and reported was {:?}", last.record),
            );
        }
    }
    for (window, sent) in &sent {
        let (accepted, tried) = (sent.accepted.len() as u64, sent.tried.len() as u64);
        // If Redis has lost a report, the window may be reported once more, with the ids that are
        // left.
        let most = most.get(window).filter(|_| forgotten_ms.contains_key(window));
        let reported = |record: &WindowRecord| most.copied().unwrap_or(record.count + record.late);
        match last.get(window).map(|last| &last.record) {
            None if accepted > 0 && window.end_ms() < now_ms => {
                add(
                    *window,
                    format!("{accepted} ids were accepted, and nothing was reported"),
                );
            }
            Some(record) if reported(record) < accepted => {
                add(
                    *window,
                    format!("{accepted} ids were accepted, and reported was {record:?}"),
                );
            }
            Some(record) if record.count > tried || record.late > tried => {
                add(*window, format!("{tried} ids were tried, and reported was {record:?}"));
            }
            _ => {}
        }
    }
    // No window between the first and the last one may be missing.
    if let (Some((first, _)), Some((newest, _))) = (last.first_key_value(), last.last_key_value()) {
        let all = std::iter::successors(Some(*first), |window| Some(window.next()));
        let missing = all
            .take_while(|window| window < newest)
            .filter(|window| !last.contains_key(window));
        // Reporting begins with the first window that is in Redis. Windows from a clock that is
        // behind, or from a spool, do not count.
        let counted = |attempt: &&&Attempt| matches!(attempt.answer, Some(Ok(Outcome::New | Outcome::Duplicate)));
        let begun = attempts
            .iter()
            .filter(counted)
            .map(|attempt| attempt.window.max(attempt.true_window))
            .min();
        // In a cluster, the index may learn of the first window from a spool.
        let first = committed.first().filter(|_| happened.is_cluster);
        let begun = begun.map(|begun| first.map_or(begun, |first| begun.max(first.record.window)));
        // A named counter without ids is reported only for some time. An id of a host whose clock
        // is ahead is in a later window, and one whose clock is behind in an earlier one.
        let may_be_idle = |window: Window| {
            // The counter may be registered shortly before the answer, in a window after that of
            // the request.
            let answered = |attempt: &Attempt| happened.length.window_at_ms(attempt.answered_ms);
            let attempts = attempts
                .iter()
                .filter(|attempt| attempt.window.max(answered(attempt)) <= window);
            let used = attempts
                .filter(counted)
                .map(|attempt| happened.idle_from_ms(attempt))
                .max();
            is_named && used.is_none_or(|idle_ms| idle_ms < window.start() * 1000)
        };
        for window in missing
            .filter(|window| begun.is_some_and(|begun| *window >= begun))
            .filter(|window| !happened.may_have_skipped(*window) && !may_be_idle(*window))
            .take(3)
        {
            add(
                window,
                "nothing was reported, though windows before and after it were".to_owned(),
            );
        }
    }
    let reported_ms = CERTAIN_MS.max(4 * happened.commit_ms);
    let certain = happened.length.window_at_ms(now_ms.saturating_sub(reported_ms));
    // A named counter that Redis lost exists again only after the next request for it.
    let counted = attempts.iter().filter(|attempt| matches!(attempt.answer, Some(Ok(_))));
    let counted_ms = counted.clone().map(|attempt| attempt.at_ms).max();
    let idle_ms = counted.map(|attempt| happened.idle_from_ms(attempt)).max();
    let idle = idle_ms
        .filter(|_| is_named)
        .map(|at_ms| happened.length.window_at_ms(at_ms));
    let expected = certain.previous().unwrap_or(certain);
    let expected = idle.map_or(expected, |idle| idle.min(expected));
    let mut losses = happened.losses.iter();
    let is_lost = losses.any(|loss| counted_ms <= Some(loss.at_ms));
    if !(is_named && (last.is_empty() || is_lost || idle.is_none()))
        && last.last_key_value().is_none_or(|(newest, _)| *newest < expected)
    {
        wrong.push(Wrong::general(format!(
            "nothing is reported any more: the newest window is {:?}",
            last.keys().last()
        )));
    }
    wrong
}
