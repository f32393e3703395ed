//! Requests are given up at every point where they wait.

use std::collections::BTreeMap;
use std::rc::Rc;

use verve_simulation::redis::Link;
use verve_simulation::world::World;

use crate::process::{Process, SECOND, machine, recorded_by_counter, statistics, world};

/// Sends requests before, during and after a cut of the link to Redis.
///
/// The first requests include a callback and a named counter.
fn scenario(seed: u64, given_up: Option<(u64, u32)>) -> (BTreeMap<u64, u32>, Process, Rc<World>) {
    let (world, server) = world(seed);
    let machine = machine(&world, &[]);
    let process = Process::new(&machine);
    if let Some((task, polls)) = given_up {
        world.executor.drop_after(task, polls);
    }
    for id in 0..6 {
        process.request(&world, id, None, (id == 1).then_some("http://game.example/"));
        process.request(&world, id, Some("a"), None);
    }
    world.executor.run_for(SECOND / 100);
    server.link.set(Link::Silent);
    (6..9).for_each(|id| process.add(&world, id));
    world.executor.run_for(2 * SECOND);
    server.link.set(Link::Up);
    (9..12).for_each(|id| process.add(&world, id));
    world.executor.run_for(10 * SECOND);
    let polls = world.executor.polls();
    (polls, process, world)
}

#[test]
fn abandoned_calls_delay_no_others_and_lose_nothing() {
    let (polls, process, world) = scenario(10, None);
    assert_eq!(process.answers.borrow().len(), 18);
    assert!(world.executor.is_empty());
    let mut tried = 0;
    for (task, polls) in polls {
        for n in 1..polls {
            let (_, process, world) = scenario(10, Some((task, n)));
            // Later requests are answered in time.
            let before = process.answers.borrow().len();
            assert!(before >= 16, "task {task} after {n} polls: {before} answers");
            (100..200).for_each(|id| process.add(&world, id));
            world.executor.run_for(3 * SECOND);
            let answered = process.answers.borrow().len() - before;
            assert_eq!(answered, 100, "task {task} after {n} polls");
            world.executor.run_for(10 * SECOND);
            let recorded = recorded_by_counter(&world.servers[0]);
            let lost: Vec<_> = process.accepted.borrow().difference(&recorded).cloned().collect();
            assert!(lost.is_empty(), "task {task} after {n} polls: {lost:?} are lost");
            assert!(
                world.executor.is_empty(),
                "task {task} after {n} polls: something goes on for ever"
            );
            // Statistics that are sent at the moment of giving up may be missing in part, but none
            // count twice.
            let requests = statistics(&world.servers[0])["requests"];
            let answers = process.answers.borrow().len().try_into().expect("few");
            assert!(
                (100..=answers).contains(&requests),
                "task {task} after {n} polls: {requests} requests of {answers}"
            );
            tried += 1;
        }
    }
    assert!(tried > 100, "{tried}");
}
