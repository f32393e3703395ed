//! A circuit: remembers for a short while that something failed, so that requests need not wait for it to fail again.

use std::cell::Cell;

/// How long a circuit stays open after a failure, in milliseconds.
pub const OPEN_MS: u64 = 1000;

/// Closed while all is well. Open after a failure; once [`OPEN_MS`] have passed, one request is let through to try.
#[derive(Debug, Default)]
pub struct Circuit {
    /// Until when it is open, in milliseconds of a clock that is never set; 0 while it is closed.
    open_until: Cell<u64>,
}

/// Whether a request may go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// The circuit is closed.
    Free,
    /// It was open for long enough: this request is the one that tries.
    Trial,
    /// It is open.
    Barred,
}

impl Circuit {
    /// Asks for passage. `now` is the time in milliseconds, by a clock that is never set, asked for only while the circuit is not closed. A trial
    /// takes at most `trial_ms`; until then nobody else is let through.
    pub fn enter(&self, now: impl FnOnce() -> u64, trial_ms: u64) -> Passage {
        let until = self.open_until.get();
        if until == 0 {
            return Passage::Free;
        }
        let now = now();
        if now < until {
            return Passage::Barred;
        }
        self.open_until.set(now + trial_ms);
        Passage::Trial
    }

    /// Whether it is open, to those who went through while it was closed.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open_until.get() != 0
    }

    /// Opens it until a moment in milliseconds of the same clock.
    pub fn open(&self, until: u64) {
        self.open_until.set(until.max(1));
    }

    /// Closes it. Says whether it was open.
    pub fn close(&self) -> bool {
        self.open_until.replace(0) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn after_a_failure_one_at_a_time_is_let_through_to_try() {
        let circuit = Circuit::default();
        let enter = |now| circuit.enter(|| now, 50);
        assert_eq!(
            circuit.enter(|| unreachable!("a closed circuit asks for no time"), 50),
            Passage::Free
        );
        circuit.open(100);
        assert!(circuit.is_open());
        assert_eq!(
            [enter(99), enter(100), enter(101), enter(149)],
            [Passage::Barred, Passage::Trial, Passage::Barred, Passage::Barred]
        );
        // The trial came to no end: its request was given up.
        assert_eq!([enter(150), enter(151)], [Passage::Trial, Passage::Barred]);
        assert!(circuit.close());
        assert!(!circuit.close());
        assert_eq!(enter(152), Passage::Free);
    }

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Enter,
        /// The oldest of those under way comes to its end, well or not.
        End {
            well: bool,
        },
        Pass(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => Just(Event::Enter),
            2 => any::<bool>().prop_map(|well| Event::End { well }),
            2 => (1..2_000u64).prop_map(Event::Pass),
        ]
    }

    proptest! {
        /// Whoever comes in whatever order: after a failure nobody goes through for [`OPEN_MS`], then one at a time does, for as long as
        /// a trial takes; and after something went well, everybody.
        #[test]
        fn at_most_one_tries_a_server_that_is_away(events in proptest::collection::vec(event(), 1..200)) {
            const TRIAL_MS: u64 = 1_500;
            let circuit = Circuit::default();
            let (mut now, mut under_way) = (1, std::collections::VecDeque::new());
            // What is known of the server: when it last failed, and when it was last tried since.
            let (mut failed, mut tried) = (None::<u64>, None::<u64>);
            for event in events {
                match event {
                    Event::Pass(ms) => now += ms,
                    Event::Enter => {
                        let passage = circuit.enter(|| now, TRIAL_MS);
                        let since = |then: Option<u64>| then.map_or(u64::MAX, |then| now - then);
                        let expected = if failed.is_none() {
                            Passage::Free
                        } else if since(failed) < OPEN_MS || since(tried) < TRIAL_MS {
                            Passage::Barred
                        } else {
                            Passage::Trial
                        };
                        prop_assert_eq!(passage, expected);
                        if passage == Passage::Trial {
                            tried = Some(now);
                        }
                        if passage != Passage::Barred {
                            under_way.push_back(());
                        }
                    }
                    Event::End { well } => {
                        if under_way.pop_front().is_none() {
                            continue;
                        }
                        if well {
                            circuit.close();
                            failed = None;
                        } else {
                            circuit.open(now + OPEN_MS);
                            failed = Some(now);
                        }
                        tried = None;
                    }
                }
                prop_assert_eq!(circuit.is_open(), failed.is_some());
            }
        }
    }
}
