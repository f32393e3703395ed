//! What is promised, as code: by what clients were answered and what consumers of the records read.

use std::collections::{BTreeMap, BTreeSet};

use verve_counter_core::answer::{Answer, Outcome};
use verve_protocol::{Window, WindowLength};

use crate::host::BEGIN_MS;
use crate::kafka::Committed;

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

/// What is not as was promised, at a time in Unix milliseconds when all should be settled.
#[must_use]
pub fn of(attempts: &[Attempt], committed: &[Committed], length: WindowLength, now_ms: u64) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut last: BTreeMap<Window, &Committed> = BTreeMap::new();
    for committed in committed {
        let record = &committed.record;
        if committed.at_ms < record.window.end_ms() {
            wrong.push(format!("{}: reported before its end: {record:?}", record.window));
        }
        if let Some(before) = last.insert(record.window, committed) {
            let before = &before.record;
            let follows = record.revision > before.revision || record == before;
            if !follows || record.count < before.count {
                wrong.push(format!("{}: {before:?} is followed by {record:?}", record.window));
            }
        }
    }
    let mut ids: BTreeMap<Window, [BTreeSet<i64>; 2]> = BTreeMap::new();
    let mut new: BTreeSet<(Window, i64)> = BTreeSet::new();
    for attempt in attempts {
        let [accepted, tried] = ids.entry(attempt.window).or_default();
        tried.insert(attempt.id);
        if let Some(Ok(outcome)) = attempt.answer {
            accepted.insert(attempt.id);
            // What comes after a window was final is compared with nothing any more.
            let has_late = last.get(&attempt.window).is_some_and(|last| last.record.late > 0);
            if outcome == Outcome::New && !new.insert((attempt.window, attempt.id)) && !has_late {
                wrong.push(format!("{}: id {} was new twice", attempt.window, attempt.id));
            }
        }
    }
    for (window, [accepted, tried]) in &ids {
        let (accepted, tried) = (accepted.len() as u64, tried.len() as u64);
        match last.get(window).map(|last| &last.record) {
            None if accepted > 0 && window.end_ms() < now_ms => {
                wrong.push(format!(
                    "{window}: {accepted} ids were accepted, and nothing was reported"
                ));
            }
            Some(record) if record.count + record.late < accepted => {
                wrong.push(format!(
                    "{window}: {accepted} ids were accepted, and reported was {record:?}"
                ));
            }
            Some(record) if record.count > tried || record.late > tried => {
                wrong.push(format!("{window}: {tried} ids were tried, and reported was {record:?}"));
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
            wrong.push(format!(
                "{window}: nothing was reported, though windows before and after it were"
            ));
        }
    }
    let certain = length.window_at_ms(now_ms.saturating_sub(30_000));
    if last
        .last_key_value()
        .is_none_or(|(newest, _)| *newest < certain.previous().unwrap_or(certain))
    {
        wrong.push(format!(
            "nothing is reported any more: the newest window is {:?}",
            last.keys().last()
        ));
    }
    wrong
}
