//! Runs plans of seeds, and plans of single problems.

use verve_simulation::mutation::{MUTATIONS, Mutation};
use verve_simulation::plan::{Fault, Followed, Kind, Plan, Request};
use verve_simulation::redis::Link;
use verve_simulation::run::run;

#[test]
fn a_seed_is_the_same_each_time() {
    for seed in 1..12 {
        let (first, second) = (run(&Plan::new(seed), false, None), run(&Plan::new(seed), true, None));
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert!(first.answered > 0 && !second.story.is_empty(), "seed {seed}");
    }
}

#[test]
fn seeds_are_as_promised() {
    for seed in 1..30 {
        assert_eq!(run(&Plan::new(seed), false, None).wrong, [], "seed {seed}");
    }
}

/// Seeds that have failed.
///
/// Each is another plan once the way to make plans changes. Then a plan of its own must show the
/// problem, as those below do.
#[test]
fn seeds_that_have_failed_do_not_fail_again() {
    let failed = [
        50_731,
        50_907,
        61_145,
        63_344,
        73_688,
        1_048_858,
        2_001_293,
        2_008_886,
        67_393_253_859_401,
        180_980_593_594_128,
        226_137_704_000_213,
    ];
    for seed in failed {
        assert_eq!(run(&Plan::new(seed), false, None).wrong, [], "seed {seed}");
    }
}

fn request(at_ms: u64, id: i64) -> Request {
    Request {
        at_ms,
        machine: 0,
        instance: 0,
        id,
        counter: None,
        endpoint: None,
        gives_up_ms: None,
    }
}

/// One host with one instance, one replica, one Redis, and nothing else.
fn small() -> Plan {
    Plan {
        window_seconds: 30,
        partitions: 1,
        late_seconds: 0,
        idle_seconds: 3600,
        latency_ms: 1,
        commit_ms: 1,
        machines: vec![1],
        drifts_ppm: Vec::new(),
        servers: 1,
        followed: None,
        may_lose: false,
        replicas: 1,
        counters: 0,
        attempts: None,
        seconds: 150,
        requests: Vec::new(),
        faults: Vec::new(),
        ..Plan::new(1)
    }
}

fn faults<const N: usize>(faults: [(u64, u64, Kind); N]) -> Vec<Fault> {
    faults.map(|(at_ms, for_ms, kind)| Fault { at_ms, for_ms, kind }).into()
}

/// Returns the mutation whose name contains this text.
fn mutation(name: &str) -> &'static Mutation {
    let mut mutations = MUTATIONS.iter();
    mutations
        .find(|mutation| mutation.name.contains(name))
        .expect("a mutation of this name")
}

/// An id in a final window is found, even after the sweep removed the window.
///
/// A host's clock is more than an hour behind, so the window in which it counts is final. Its
/// instance adds the window to the index only once, and the sweep removed the entry. An id that was
/// counted after that was not found if the instance was killed before it flushed its statistics.
#[test]
fn ids_added_to_a_final_window_are_found_after_any_number_of_searches() {
    let plan = Plan {
        requests: vec![request(1000, 1), request(91_000, 2), request(111_000, 3)],
        faults: faults([
            (90_000, 1, Kind::Clock(0, -4_020_000)),
            (111_020, 1, Kind::Instance(0, 0)),
        ]),
        ..small()
    };
    assert_eq!(run(&plan, false, None).wrong, []);
}

/// A final window is not counted again, even if a failover lost its report.
///
/// A window is reported, but the follower of Redis that takes over does not know that. The leader
/// knows it, and makes the window final. The next leader must know that it must not count the
/// window again: the ids of the window no longer exist.
#[test]
fn a_final_window_is_reported_whatever_redis_has_lost_of_that() {
    let plan = Plan {
        window_seconds: 10,
        followed: Some(Followed {
            is_waited_for: true,
            waits_for_own: true,
        }),
        requests: vec![request(45_000, 1)],
        faults: faults([(52_100, 200, Kind::TakeOver(0, 300)), (58_000, 1000, Kind::Replica(0))]),
        ..small()
    };
    assert_eq!(run(&plan, false, None).wrong, []);
    let before = mutation("when it is final");
    assert_ne!(run(&plan, false, Some(before)).wrong, []);
}

/// An id of a final window is reported, even if Redis has no report of the window.
///
/// Redis has lost the report in a failover, and the leader knows that the window was made final. An
/// id that is drained from a spool after that is still reported.
#[test]
fn a_late_id_is_published_of_a_final_window_that_redis_has_no_report_of() {
    let plan = Plan {
        window_seconds: 10,
        followed: Some(Followed {
            is_waited_for: true,
            waits_for_own: true,
        }),
        requests: vec![request(45_000, 1), request(47_000, 2)],
        faults: faults([
            (46_000, 14_000, Kind::Machine(0, Link::Refused)),
            (51_000, 6_000, Kind::Unfollowed(0)),
            (56_000, 500, Kind::TakeOver(0, 0)),
        ]),
        ..small()
    };
    assert_eq!(run(&plan, false, None).wrong, []);
}

/// A leader that wakes up after a long pause does not undo a correction.
///
/// It was about to commit the first report of a window. Meanwhile, the other replica has reported
/// the window, and has corrected the report by an id from a spool.
#[test]
fn a_leader_that_wakes_up_does_not_undo_a_correction() {
    let paused = |replica: usize| Plan {
        window_seconds: 10,
        late_seconds: 60,
        idle_seconds: 3600,
        commit_ms: 5000,
        replicas: 2,
        requests: vec![request(15_000, 1), request(17_000, 2)],
        faults: faults([
            (16_000, 30_000, Kind::Machine(0, Link::Refused)),
            (22_100, 60_000, Kind::Pause(replica)),
        ]),
        ..small()
    };
    // One of the two is the leader.
    let plans = [0, 1].map(paused);
    for plan in &plans {
        assert_eq!(run(plan, false, None).wrong, []);
    }
    let no_fence = mutation("no fence");
    assert!(
        plans
            .iter()
            .any(|plan| !run(plan, false, Some(no_fence)).wrong.is_empty())
    );
}

/// A final window does not stay in the list of open ones, which has no expiry.
#[test]
fn the_list_of_open_windows_does_not_grow() {
    let plan = Plan {
        seconds: 1200,
        ..small()
    };
    assert_eq!(run(&plan, false, None).wrong, []);
    let stays = mutation("list of open");
    assert_ne!(run(&plan, false, Some(stays)).wrong, []);
}

/// The nodes of a cluster fail over one after the other, while ids are counted.
#[test]
fn ids_are_counted_while_nodes_fail_over() {
    for server in 0..4 {
        let plan = Plan {
            window_seconds: 10,
            partitions: 4,
            servers: 4,
            followed: Some(Followed {
                is_waited_for: true,
                waits_for_own: true,
            }),
            requests: (0..300).map(|id| request(1000 + id as u64 * 300, id)).collect(),
            faults: faults([
                (20_500, 3000, Kind::TakeOver(server, 400)),
                (40_500, 3000, Kind::TakeOver((server + 1) % 4, 200)),
                (60_500, 3000, Kind::TakeOver((server + 2) % 4, 900)),
            ]),
            ..small()
        };
        assert_eq!(run(&plan, false, None).wrong, [], "first {server}");
    }
}
