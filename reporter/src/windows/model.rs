//! Every interleaving of two reporters, with every kind of failure.
//!
//! The leader's own loop runs on models of Redis and Kafka. A move of a reporter is one request to
//! Redis or Kafka and what the loop does with its answer, up to the next request. The loop cannot
//! be copied while it waits, so it runs again from the beginning of its iteration, with the answers
//! that it has received in it. Between any two moves, the other reporter may continue (so that the
//! first one is paused), either may crash, the lease may expire, ids may arrive, time may pass, and
//! Kafka or an answer may fail, each as often as the [`Budget`] allows. From every state that is
//! reached this way, a newly started reporter must be able to reach a correct end.

mod requests;
mod search;
mod world;

use std::thread;

use search::explore;
use world::{Budget, World};

#[test]
fn nothing_that_goes_wrong_makes_a_wrong_record() {
    let few = Budget::FEW;
    let searches = [
        (1, Budget { faults: 1, ..few }),
        (1, Budget { crashes: 1, ..few }),
        (1, Budget { ids: 2, ..few }),
        (
            1,
            Budget {
                expiries: 2,
                ids: 0,
                ..few
            },
        ),
        (2, few),
    ];
    thread::scope(|scope| {
        for (windows, budget) in searches {
            scope.spawn(move || {
                let states = explore(World::new(windows, budget, true)).unwrap_or_else(|problem| panic!("{problem}"));
                println!("{windows} windows, {budget:?}: {states} states");
                assert!(states > 1_000, "{budget:?}: only {states} states");
            });
        }
    });
}

#[test]
fn without_fencing_a_paused_leader_spoils_the_last_record() {
    let problem = explore(World::new(1, Budget::FEW, false)).expect_err("a problem");
    assert!(problem.contains("after revision"), "{problem}");
}
