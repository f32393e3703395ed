//! A circuit: remembers for a short time that something failed.
//!
//! So requests need not wait for it to fail again.

use std::cell::Cell;

/// How long a circuit stays open after a failure, in milliseconds.
pub const OPEN_MS: u64 = 1000;

/// Closed while there is no failure, and open after one.
///
/// [`OPEN_MS`] after the failure it becomes half-open: one request probes.
#[derive(Debug, Default)]
pub struct Circuit {
    /// Until when it is open, in milliseconds; 0 while it is closed.
    ///
    /// By a clock that is never set.
    open_until: Cell<u64>,
}

/// The state of the circuit for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CircuitState {
    /// The circuit is closed: the request may run.
    Closed,
    /// The circuit was open long enough: this request probes.
    HalfOpen,
    /// The circuit is open: the request may not run.
    Open,
}

impl Circuit {
    /// Returns the state for a request that is about to run.
    ///
    /// `now` returns the time in milliseconds, by a clock that is never set. It is called only
    /// while the circuit is not closed. A half-open circuit is open for all other requests while
    /// the probe runs, at most for `trial_ms`.
    pub fn enter(&self, now: impl FnOnce() -> u64, trial_ms: u64) -> CircuitState {
        let until = self.open_until.get();
        if until == 0 {
            return CircuitState::Closed;
        }
        let now = now();
        if now < until {
            return CircuitState::Open;
        }
        self.open_until.set(now + trial_ms);
        CircuitState::HalfOpen
    }

    /// Returns whether it is not closed, for requests that began while it was closed.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open_until.get() != 0
    }

    /// Opens it until this time, in milliseconds of the same clock.
    pub fn open(&self, until: u64) {
        self.open_until.set(until.max(1));
    }

    /// Closes it. Returns whether it was open.
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
            CircuitState::Closed
        );
        circuit.open(100);
        assert!(circuit.is_open());
        assert_eq!(
            [enter(99), enter(100), enter(101), enter(149)],
            [
                CircuitState::Open,
                CircuitState::HalfOpen,
                CircuitState::Open,
                CircuitState::Open
            ]
        );
        // The probe did not end: its request was given up.
        assert_eq!([enter(150), enter(151)], [CircuitState::HalfOpen, CircuitState::Open]);
        assert!(circuit.close());
        assert!(!circuit.close());
        assert_eq!(enter(152), CircuitState::Closed);
    }

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Enter,
        /// The oldest request under way ends, with or without success.
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
        /// In any order of requests, at most one at a time probes after a failure.
        ///
        /// After a failure no request runs for [`OPEN_MS`]. Then one at a time runs, for as long as
        /// a probe takes. After a success all run.
        #[test]
        fn at_most_one_call_probes_an_unreachable_server(events in proptest::collection::vec(event(), 1..200)) {
            const TRIAL_MS: u64 = 1_500;
            let circuit = Circuit::default();
            let (mut now, mut under_way) = (1, std::collections::VecDeque::new());
            // The state of the server: when it last failed, and when it was last probed since.
            let (mut failed, mut tried) = (None::<u64>, None::<u64>);
            for event in events {
                match event {
                    Event::Pass(ms) => now += ms,
                    Event::Enter => {
                        let circuit = circuit.enter(|| now, TRIAL_MS);
                        let since = |then: Option<u64>| then.map_or(u64::MAX, |then| now - then);
                        let expected = if failed.is_none() {
                            CircuitState::Closed
                        } else if since(failed) < OPEN_MS || since(tried) < TRIAL_MS {
                            CircuitState::Open
                        } else {
                            CircuitState::HalfOpen
                        };
                        prop_assert_eq!(circuit, expected);
                        if circuit == CircuitState::HalfOpen {
                            tried = Some(now);
                        }
                        if circuit != CircuitState::Open {
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
