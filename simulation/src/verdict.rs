//! What is promised, as code: by what clients were answered and what consumers of the records read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use verve_counter_core::answer::{Answer, Outcome};
use verve_protocol::{Window, WindowLength};

use crate::kafka::Committed;
use crate::world::BEGIN_MS;

/// A request.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Its id.
    pub id: i64,
    /// The window that was open then, by the clock of its machine.
    pub window: Window,
    /// What was answered; nothing if the instance was killed before.
    pub answer: Option<Answer>,
}

/// What clients have sent in a window.
#[derive(Default)]
struct Sent {
    requests: u64,
    /// The ids of all of them.
    tried: BTreeSet<i64>,
    /// Those that were answered `ok`.
    accepted: BTreeSet<i64>,
}

/// Something that is not as was promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The window that it is about, if it is about one.
    pub window: Option<Window>,
    /// What it is.
    pub what: String,
}

impl Wrong {
    /// Something about no window.
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

/// What is not as was promised, at a time in Unix milliseconds when all should be settled.
#[must_use]
pub fn of(attempts: &[Attempt], committed: &[Committed], length: WindowLength, now_ms: u64) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    let mut say = |window: Window, what: String| {
        wrong.push(Wrong {
            window: Some(window),
            what,
        });
    };
    let mut last: BTreeMap<Window, &Committed> = BTreeMap::new();
    for committed in committed {
        let record = &committed.record;
        if committed.at_ms < record.window.end_ms() {
            say(record.window, format!("reported before its end: {record:?}"));
        }
        if let Some(before) = last.insert(record.window, committed) {
            let before = &before.record;
            let follows = record.revision > before.revision || record == before;
            if !follows || record.count < before.count {
                say(record.window, format!("{before:?} is followed by {record:?}"));
            }
        }
    }
    let mut sent: BTreeMap<Window, Sent> = BTreeMap::new();
    let mut new: BTreeSet<(Window, i64)> = BTreeSet::new();
    for attempt in attempts {
        let sent = sent.entry(attempt.window).or_default();
        sent.requests += 1;
        sent.tried.insert(attempt.id);
        if let Some(Ok(outcome)) = attempt.answer {
            sent.accepted.insert(attempt.id);
            // What comes after a window was final is compared with nothing any more.
            let has_late = last.get(&attempt.window).is_some_and(|last| last.record.late > 0);
            if outcome == Outcome::New && !new.insert((attempt.window, attempt.id)) && !has_late {
                say(attempt.window, format!("id {} was new twice", attempt.id));
            }
        }
    }
    for (window, last) in &last {
        let requests = sent.get(window).map_or(0, |sent| sent.requests);
        // A late id whose answer was lost is new at the next attempt again, if it was put aside in between.
        if last.record.requests > requests && last.record.late == 0 {
            say(
                *window,
                format!("there were {requests} requests, and reported was {:?}", last.record),
            );
        }
    }
    for (window, sent) in &sent {
        let (accepted, tried) = (sent.accepted.len() as u64, sent.tried.len() as u64);
        match last.get(window).map(|last| &last.record) {
            None if accepted > 0 && window.end_ms() < now_ms => {
                say(
                    *window,
                    format!("{accepted} ids were accepted, and nothing was reported"),
                );
            }
            Some(record) if record.count + record.late < accepted => {
                say(
                    *window,
                    format!("{accepted} ids were accepted, and reported was {record:?}"),
                );
            }
            Some(record) if record.count > tried || record.late > tried => {
                say(*window, format!("{tried} ids were tried, and reported was {record:?}"));
            }
            _ => {}
        }
    }
    // Between the first and the last there is each.
    if let (Some((first, _)), Some((newest, _))) = (last.first_key_value(), last.last_key_value()) {
        let all = std::iter::successors(Some(*first), |window| Some(window.next()));
        let missing = all
            .take_while(|window| window < newest)
            .filter(|window| !last.contains_key(window));
        // What a clock that is behind has brought is no beginning.
        let accepted = attempts.iter().filter(|attempt| matches!(attempt.answer, Some(Ok(_))));
        let begun = accepted
            .map(|attempt| attempt.window)
            .filter(|window| window.end_ms() > BEGIN_MS)
            .min();
        for window in missing
            .filter(|window| begun.is_some_and(|begun| *window >= begun))
            .take(3)
        {
            say(
                window,
                "nothing was reported, though windows before and after it were".to_owned(),
            );
        }
    }
    let certain = length.window_at_ms(now_ms.saturating_sub(30_000));
    if last
        .last_key_value()
        .is_none_or(|(newest, _)| *newest < certain.previous().unwrap_or(certain))
    {
        wrong.push(Wrong::general(format!(
            "nothing is reported any more: the newest window is {:?}",
            last.keys().last()
        )));
    }
    wrong
}
