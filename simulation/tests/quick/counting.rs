//! Each id is counted once.

use std::collections::BTreeSet;

use verve_counter_core::answer::{Limit, NotCounted, Outcome};
use verve_simulation::redis::Answer;

use crate::process::{Process, SECOND, give_up_all, machine, recorded, statistics, world};

#[test]
fn ids_are_counted_once() {
    let (world, server) = world(1);
    let machine = machine(&world, &[]);
    let processes = [Process::new(&machine), Process::new(&machine)];
    for id in 0..200 {
        for process in &processes {
            process.add(&world, id);
        }
    }
    world.executor.run_for(5 * SECOND);
    let new: Vec<i64> = processes
        .iter()
        .flat_map(|process| process.answered(Ok(Outcome::New)))
        .collect();
    assert_eq!(new.len(), 200);
    assert_eq!(new.into_iter().collect::<BTreeSet<_>>(), (0..200).collect());
    assert_eq!(recorded(&world.servers), (0..200).collect());
    let statistics = statistics(&server);
    assert_eq!(
        (statistics["requests"], statistics["new"], statistics["duplicate"]),
        (400, 200, 200)
    );
    // A request without a valid id is only in the statistics.
    world.executor.spawn({
        let process = processes[0].clone();
        async move { process.counter().await.expect("valid").count_invalid() }
    });
    // The instance knows by now that Redis has this id.
    processes[0].add(&world, 7);
    world.executor.run_for(SECOND);
    assert_eq!(processes[0].answers.borrow().last(), Some(&(7, Ok(Outcome::Duplicate))));
    assert!(world.executor.is_empty(), "something goes on for ever");
    let expires = |key: &String| server.entries()[key].expires_ms.is_some();
    assert!(server.entries().keys().all(expires), "{:#?}", server.entries());
}

#[test]
fn a_server_that_has_lost_its_data_is_given_the_index_again() {
    let (world, server) = world(4);
    let process = Process::new(&machine(&world, &[]));
    process.add(&world, 1);
    world.executor.run_for(SECOND);
    server.restart(true);
    world.executor.run_for(2 * SECOND);
    process.add(&world, 1);
    world.executor.run_for(2 * SECOND);
    assert_eq!(process.answered(Ok(Outcome::New)), [1, 1]);
    assert_eq!(recorded(&world.servers), [1].into());
}

#[test]
fn limits_are_kept() {
    let (world, server) = world(6);
    let variables = [("window_limit", "10"), ("endpoint_limit", "3")];
    let process = Process::new(&machine(&world, &variables));
    for id in 0..5 {
        process.request(&world, id, None, Some("http://game.example/"));
        world.executor.run_for(SECOND / 10);
    }
    assert_eq!(process.answered(Ok(Outcome::New)), [0, 1, 2]);
    assert_eq!(process.answered(Err(NotCounted::Limited(Limit::Endpoint))), [3, 4]);
    assert_eq!(server.stream_len("{verve}:callbacks"), 3);
    for id in 0..20 {
        process.add(&world, id);
    }
    world.executor.run_for(2 * SECOND);
    assert_eq!(process.answered(Ok(Outcome::Duplicate)), [0, 1, 2]);
    assert_eq!(process.answered(Err(NotCounted::Limited(Limit::Window))).len(), 10);
    assert_eq!(recorded(&world.servers).len(), 10);
}

#[test]
fn named_counters_count_by_themselves() {
    let (world, server) = world(7);
    let process = Process::new(&machine(&world, &[("counter_limit", "100")]));
    for id in 0..10 {
        process.request(&world, id, Some("a"), None);
        process.request(&world, id, Some("b"), None);
    }
    world.executor.run_for(2 * SECOND);
    assert_eq!(process.answered(Ok(Outcome::New)).len(), 20);
    let entries = server.entries();
    let keys: Vec<&String> = entries.keys().filter(|key| key.contains(":ids:")).collect();
    assert_eq!(keys.len(), 2, "{keys:?}");
    assert!(entries.contains_key("{verve}:counters"));
    for name in 0..110 {
        process.request(&world, 1, Some(&format!("n{name}")), None);
    }
    world.executor.run_for(2 * SECOND);
    let refused = process.answered(Err(NotCounted::Limited(Limit::Counters)));
    assert_eq!(refused.len(), 12);
}

#[test]
fn replicas_are_waited_for() {
    let (world, server) = world(8);
    let process = Process::new(&machine(&world, &[("redis_wait_replicas", "1")]));
    process.add(&world, 1);
    world.executor.run_for(3 * SECOND);
    assert_eq!(process.answered(Ok(Outcome::Spooled)), [1]);
    server.replicas.set(1);
    world.executor.run_for(5 * SECOND);
    process.add(&world, 2);
    world.executor.run_for(3 * SECOND);
    assert_eq!(process.answered(Ok(Outcome::New)), [2]);
    assert_eq!(recorded(&world.servers), [1, 2].into());
}

/// The reporter can find an earlier window in which an id was counted.
///
/// The clock of a host is set back, an id is counted in an earlier window, and the host dies.
#[test]
fn an_earlier_window_is_indexed_too() {
    let (world, server) = world(25);
    let machine = machine(&world, &[]);
    let process = Process::new(&machine);
    process.add(&world, 1);
    world.executor.run_for(SECOND);
    machine.set_clock(-3_600_000);
    process.add(&world, 2);
    while process.answers.borrow().len() < 2 {
        world.executor.run_for(SECOND / 1000);
    }
    give_up_all(&world);
    world.executor.run_for(SECOND);
    let windows = server.execute(
        &["ZCARD", "{verve}:windows:60"].map(str::to_owned),
        world.now_us(),
        false,
        0,
    );
    assert_eq!(windows, Answer::Number(2));
}

/// The first id after Redis has lost its data is registered completely.
///
/// The instance knows that Redis has its counter, its window and the set's expiry, and does not
/// send them again. Redis has lost all of them since.
#[test]
fn the_first_id_after_redis_has_lost_its_data_is_counted_whole() {
    for (name, partitions) in [(None, "1"), (Some("clicks"), "1"), (None, "4"), (Some("clicks"), "4")] {
        let (world, server) = world(31);
        let process = Process::new(&machine(&world, &[("partitions", partitions)]));
        (0..10).for_each(|id| process.request(&world, id, name, None));
        world.executor.run_for(SECOND);
        let before: Vec<String> = server.entries().into_keys().collect();
        server.restart(true);
        (10..40).for_each(|id| process.request(&world, id, name, None));
        world.executor.run_for(SECOND);
        assert_eq!(process.answered(Ok(Outcome::New)), (0..40).collect::<Vec<_>>());
        let entries = server.entries();
        let is_there = |key: &String| {
            entries
                .get(key)
                .is_some_and(|entry| entry.expires_ms.is_some() || key.starts_with("{verve}:counters"))
        };
        assert!(before.iter().all(is_there), "{before:?}: {entries:#?}");
    }
}
