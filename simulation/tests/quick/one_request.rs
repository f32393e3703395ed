//! Instances that serve one request each, with blocking calls.

use std::cell::RefCell;
use std::rc::Rc;

use verve_counter_core::answer::{Answer, Limit, NotCounted, Outcome};
use verve_protocol::Id;
use verve_protocol::slot::slot;
use verve_simulation::host::Machine;
use verve_simulation::redis::{Link, Server};
use verve_simulation::world::World;

use crate::process::{Process, SECOND, machine, recorded, statistics, world};

/// Returns the answer of an instance that serves one request.
///
/// Also returns how many commands the servers received.
fn once(world: &Rc<World>, machine: &Machine, id: i64, name: Option<&str>, endpoint: Option<&str>) -> (Answer, u64) {
    let commands = || world.servers.iter().map(|server| server.commands.get()).sum::<u64>();
    let before = commands();
    let machine = machine.blocking();
    let process = Process::new(&machine);
    process.request(world, id, name, endpoint);
    world.executor.run_for(5 * SECOND);
    world.executor.spawn(async move { machine.finish().await });
    world.executor.run_for(5 * SECOND);
    assert!(world.executor.is_empty());
    let answers = process.answers.borrow();
    let [(_, answer)] = answers.as_slice() else {
        panic!("{answers:?}");
    };
    (*answer, commands() - before)
}

const GAME: Option<&str> = Some("http://game.example/");

#[test]
fn an_instance_that_serves_one_request_asks_once() {
    let (world, server) = world(11);
    let machine = machine(&world, &[]);
    assert_eq!(once(&world, &machine, 1, None, None), (Ok(Outcome::New), 1));
    assert_eq!(once(&world, &machine, 1, None, GAME), (Ok(Outcome::Duplicate), 1));
    assert_eq!(once(&world, &machine, 1, Some("a"), None), (Ok(Outcome::New), 2));
    assert_eq!(server.stream_len("{verve}:callbacks"), 1);
    let counted = statistics(&server);
    assert_eq!((counted["requests"], counted["new"], counted["duplicate"]), (3, 2, 1));
    let keys = server.entries();
    assert!(keys.keys().any(|key| key.contains(":windows:")), "{keys:?}");
    let lasts = |key: &String| keys[key].expires_ms.is_none();
    let lasting: Vec<&String> = keys.keys().filter(|key| lasts(key)).collect();
    assert_eq!(
        lasting,
        ["{verve}:callbacks", "{verve}:counters", "{verve}:counters:in-use:60"]
    );
    // A retry after a lost answer counts no id twice.
    server.link.set(Link::Deaf);
    assert_eq!(once(&world, &machine, 2, None, None).0, Err(NotCounted::Unavailable));
    server.link.set(Link::Up);
    assert_eq!(once(&world, &machine, 2, None, None).0, Ok(Outcome::Duplicate));
    assert_eq!(statistics(&server)["requests"], 5);
    // Without a server there is no place for the id.
    server.link.set(Link::Refused);
    assert_eq!(once(&world, &machine, 3, None, None), (Err(NotCounted::Unavailable), 0));
}

#[test]
fn an_instance_that_serves_one_request_keeps_limits() {
    let (world, server) = world(12);
    let variables = [
        ("window_limit", "3"),
        ("endpoint_limit", "2"),
        ("redis_wait_replicas", "1"),
    ];
    let machine = machine(&world, &variables);
    server.replicas.set(1);
    for id in 0..2 {
        assert_eq!(once(&world, &machine, id, None, GAME), (Ok(Outcome::New), 2));
    }
    let beyond = |limit| Err(NotCounted::Limited(limit));
    assert_eq!(once(&world, &machine, 2, None, GAME).0, beyond(Limit::Endpoint));
    assert_eq!(once(&world, &machine, 2, None, None).0, Ok(Outcome::New));
    assert_eq!(once(&world, &machine, 3, None, None).0, beyond(Limit::Window));
    assert_eq!(statistics(&server)["limited"], 2);
    server.replicas.set(0);
    assert_eq!(once(&world, &machine, 1, None, None).0, Err(NotCounted::Unavailable));
    assert_eq!(recorded(&world.servers), (0..3).collect());
}

#[test]
fn an_instance_that_serves_one_request_is_sent_on_in_a_cluster() {
    let servers = Server::cluster(&["a", "b", "c"]);
    let world = World::new(13, servers.clone());
    let several = [("redis_urls", "redis://b,redis://a"), ("partitions", "8")];
    let one = [("redis_urls", "redis://c"), ("partitions", "8")];
    for (first, variables) in [(0, several), (100, one)] {
        let machine = Machine::new(&world, &variables);
        for id in first..first + 50 {
            let (answer, commands) = once(
                &world,
                &machine,
                id,
                None,
                (id % 10 == 0).then_some("http://game.example/"),
            );
            assert_eq!(answer, Ok(Outcome::New), "{id}");
            assert!(commands <= 6, "{id}: {commands}");
        }
    }
    assert_eq!(recorded(&servers).len(), 100);
    let jobs: usize = servers
        .iter()
        .map(|server| server.stream_len("{verve}:callbacks"))
        .sum();
    assert_eq!(jobs, 10);
    let requests: i64 = servers
        .iter()
        .filter_map(|server| statistics(server).remove("requests"))
        .sum();
    assert_eq!(requests, 100);
    // The first named node is unreachable and has no statistics. The other nodes know where the
    // keys are.
    let of_statistics = servers.iter().position(|server| !statistics(server).is_empty());
    let of_statistics = of_statistics.expect("a node with statistics");
    let away = &servers[(of_statistics + 1) % 3];
    let named = format!("redis://{},redis://{}", away.host, servers[of_statistics].host);
    away.link.set(Link::Refused);
    let machine = Machine::new(&world, &[("redis_urls", &named), ("partitions", "8")]);
    // The same must hold if the nodes may not return the map.
    for (first, hide) in [(200, false), (600, true)] {
        servers.iter().for_each(|server| server.hides_map.set(hide));
        let answers = (first..first + 50).map(|id| once(&world, &machine, id, None, None).0);
        let new = answers.filter(|answer| *answer == Ok(Outcome::New)).count();
        assert!((1..50).contains(&new), "{hide}: {new}");
    }
    servers.iter().for_each(|server| server.hides_map.set(false));
    away.link.set(Link::Up);
    // Many ids in one call are sent to the nodes that own them.
    let ids: Vec<i64> = (300..400).chain(300..310).collect();
    let answers = many(&world, &machine, &ids);
    assert!(
        answers[..100].iter().all(|answer| *answer == Ok(Outcome::New)),
        "{answers:?}"
    );
    let again = &answers[100..];
    assert!(
        again.iter().all(|answer| *answer == Ok(Outcome::Duplicate)),
        "{again:?}"
    );
}

/// Returns the answers to many ids in one call of a one-request instance.
fn many(world: &Rc<World>, machine: &Machine, ids: &[i64]) -> Vec<Answer> {
    let machine = machine.blocking();
    let process = Process::new(&machine);
    let ids: Vec<Id> = ids.iter().copied().map(Id).collect();
    let answers = Rc::new(RefCell::new(Vec::new()));
    let filled = answers.clone();
    world.executor.spawn(async move {
        let counter = process.counter().await.expect("valid");
        filled.replace(counter.add_many(&ids).await);
        machine.finish().await;
    });
    world.executor.run_for(10 * SECOND);
    assert!(world.executor.is_empty());
    answers.take()
}

#[test]
fn an_instance_that_serves_one_request_counts_many_ids() {
    let (world, server) = world(14);
    let machine = machine(&world, &[]);
    let (new, again) = (Ok(Outcome::New), Ok(Outcome::Duplicate));
    assert_eq!(many(&world, &machine, &[1, 2, 1]), [new, new, again]);
    // The ids, their window in the index, the index's expiry, the statistics, and the removal of
    // the batch's idempotency key, since nobody sends the batch again.
    assert_eq!(server.commands.get(), 5);
    let entries = server.entries();
    assert!(entries.values().all(|entry| entry.expires_ms.is_some()), "{entries:?}");
    // The answer is lost: at the next attempt the ids are already in Redis, and are counted once.
    server.link.set(Link::Deaf);
    let deaf = server.clone();
    world.executor.after(SECOND / 2, move || deaf.link.set(Link::Up));
    assert_eq!(many(&world, &machine, &[3, 4]), [again; 2]);
    let counted = statistics(&server);
    assert_eq!((counted["requests"], counted["new"], counted["duplicate"]), (5, 2, 3));
    // Each call asks a server again that was unreachable.
    server.link.set(Link::Refused);
    let process = Process::new(&machine.blocking());
    let (added, back) = (process.clone(), server.clone());
    world.executor.spawn(async move {
        let counter = added.counter().await.expect("valid");
        for id in 5..8 {
            let answers = counter.add_many(&[Id(id)]).await;
            added.answers.borrow_mut().push((id, answers[0]));
            back.link.set(Link::Up);
        }
    });
    world.executor.run_for(SECOND);
    let answers = process.answers.borrow();
    assert_eq!(*answers, [(5, Err(NotCounted::Unavailable)), (6, new), (7, new)]);
}

/// Ids are not `ok` if their window cannot be added to the index.
///
/// Their set exists, but the reporter might never look for it.
#[test]
fn many_ids_are_not_ok_without_the_index() {
    let servers = Server::cluster(&["a", "b"]);
    let world = World::new(25, servers.clone());
    let machine = Machine::new(&world, &[("redis_urls", "redis://a,redis://b"), ("partitions", "16")]);
    let ids: Vec<i64> = (0..30).collect();
    let index = servers.iter().find(|server| server.owns("{verve}:windows:60"));
    let index = index.expect("the owner of the slot");
    index.is_full.set(true);
    assert_eq!(many(&world, &machine, &ids), [Err(NotCounted::Unavailable); 30]);
    index.is_full.set(false);
    let answers = many(&world, &machine, &ids);
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert!(answers.contains(&Ok(Outcome::Duplicate)), "{answers:?}");
}

/// An id is counted once if its slot moves after its answer was lost.
#[test]
fn a_request_repeated_after_a_lost_answer_is_counted_once() {
    let servers = Server::cluster(&["a", "b"]);
    let world = World::new(15, servers.clone());
    let named = |server: &Server| Machine::new(&world, &[("redis_urls", &format!("redis://{}", server.host))]);
    assert_eq!(once(&world, &named(&servers[0]), 1, None, None).0, Ok(Outcome::New));
    let has_statistics = servers.iter().position(|server| !statistics(server).is_empty());
    let from = servers[has_statistics.expect("one")].clone();
    let to = servers
        .iter()
        .find(|server| server.host != from.host)
        .expect("two")
        .clone();
    let machine = named(&from);
    from.link.set(Link::Deaf);
    let moved = from.clone();
    world.executor.after(SECOND / 2, move || {
        moved.entries().keys().for_each(|key| moved.move_slot(slot(key), &to));
        moved.link.set(Link::Up);
    });
    assert_eq!(once(&world, &machine, 1, None, None).0, Ok(Outcome::Duplicate));
    let requests = servers
        .iter()
        .filter_map(|server| statistics(server).remove("requests"));
    assert_eq!(requests.sum::<i64>(), 2);
}

#[test]
fn an_instance_that_serves_one_request_keeps_limits_in_a_cluster() {
    let servers = Server::cluster(&["a", "b"]);
    let world = World::new(23, servers.clone());
    let variables = [
        ("redis_urls", "redis://a,redis://b"),
        ("window_limit", "3"),
        ("endpoint_limit", "2"),
    ];
    let machine = Machine::new(&world, &variables);
    let beyond = |limit| Err(NotCounted::Limited(limit));
    for id in 0..2 {
        assert_eq!(once(&world, &machine, id, None, GAME).0, Ok(Outcome::New));
    }
    assert_eq!(once(&world, &machine, 2, None, GAME).0, beyond(Limit::Endpoint));
    assert_eq!(recorded(&servers), [0, 1].into());
    assert_eq!(once(&world, &machine, 2, None, None).0, Ok(Outcome::New));
    assert_eq!(
        once(&world, &machine, 3, None, Some("http://other.example/")).0,
        beyond(Limit::Window)
    );
    assert_eq!(recorded(&servers), (0..3).collect());
}
