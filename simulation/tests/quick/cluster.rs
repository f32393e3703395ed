//! A cluster of several nodes.

use verve_counter_core::answer::{NotCounted, Outcome};
use verve_counter_core::spooled::SpoolError;
use verve_protocol::slot::slot;
use verve_simulation::host::Machine;
use verve_simulation::redis::{Link, Server};
use verve_simulation::world::World;

use crate::process::{Process, SECOND, give_up_all, recorded, statistics};

#[test]
fn ids_find_their_node_wherever_it_is() {
    let servers = Server::cluster(&["a", "b", "c"]);
    let world = World::new(9, servers.clone());
    let variables = [("redis_urls", "redis://b,redis://a,redis://c"), ("partitions", "16")];
    let process = Process::new(&Machine::new(&world, &variables));
    (0..300).for_each(|id| process.add(&world, id));
    world.executor.run_for(SECOND);
    assert_eq!(process.answered(Ok(Outcome::New)).len(), 300);
    let with_ids = servers
        .iter()
        .filter(|server| server.entries().keys().any(|key| key.contains(":ids:")));
    assert_eq!(with_ids.count(), 3);
    // A slot moves while ids for it arrive.
    let key = servers[0]
        .entries()
        .into_keys()
        .find(|key| key.contains(":ids:"))
        .expect("one");
    servers[0].begin_to_move(slot(&key), &servers[2]);
    (300..400).for_each(|id| process.add(&world, id));
    world.executor.run_for(SECOND);
    servers[0].move_slot(slot(&key), &servers[2]);
    (400..500).for_each(|id| process.add(&world, id));
    world.executor.run_for(SECOND);
    assert_eq!(process.answered(Ok(Outcome::New)).len(), 500);
    // A node becomes unreachable: its ids are spooled, and those of other nodes are not.
    servers[1].link.set(Link::Refused);
    (500..600).for_each(|id| process.add(&world, id));
    world.executor.run_for(3 * SECOND);
    let spooled = process.answered(Ok(Outcome::Spooled)).len();
    assert!((1..100).contains(&spooled), "{spooled}");
    servers[1].link.set(Link::Up);
    world.executor.run_for(10 * SECOND);
    assert_eq!(recorded(&servers), (0..600).collect());
}

/// While a slot moves, a set that does not exist yet is created on the target node.
#[test]
fn sets_that_begin_in_a_moving_slot_are_where_it_goes() {
    let servers = Server::cluster(&["a", "b"]);
    let world = World::new(20, servers.clone());
    let process = Process::new(&Machine::new(&world, &[("redis_urls", "redis://a,redis://b")]));
    process.add(&world, 0);
    world.executor.run_for(SECOND);
    let has_ids = |server: &Server| server.entries().into_keys().find(|key| key.contains(":ids:"));
    let key = servers.iter().find_map(|server| has_ids(server)).expect("one");
    let (of, start) = key.rsplit_once(':').expect("its start");
    let next = format!("{of}:{}", start.parse::<u64>().expect("a time") + 60);
    let (from, to) = if servers[0].owns(&next) { (0, 1) } else { (1, 0) };
    servers[from].begin_to_move(slot(&next), &servers[to]);
    world.executor.run_for(60 * SECOND);
    (1..50).for_each(|id| process.add(&world, id));
    world.executor.run_for(2 * SECOND);
    assert_eq!(process.answered(Ok(Outcome::New)).len(), 50);
    assert_eq!(
        servers[to].members(&next).len(),
        49,
        "{next}: {:?}",
        servers[to].entries().keys()
    );
}

/// The first request asks all named nodes for the map if the first one is silent.
#[test]
fn the_map_is_read_from_reachable_nodes() {
    let servers = Server::cluster(&["a", "b", "c"]);
    let world = World::new(21, servers.clone());
    servers[0].link.set(Link::Silent);
    let variables = [("redis_urls", "redis://a,redis://b,redis://c"), ("partitions", "32")];
    let machine = Machine::new(&world, &variables);
    let process = Process::new(&machine);
    for ids in [0..30, 30..90] {
        ids.for_each(|id| process.add(&world, id));
        world.executor.run_for(5 * SECOND);
    }
    // The first ids have waited for too long.
    let counted = process.answered(Ok(Outcome::New)).len();
    assert!((20..60).contains(&counted), "{counted}");
    assert_eq!(process.answered(Ok(Outcome::Spooled)).len(), 90 - counted);
    // All nodes get their ids, also the node that the variable does not name.
    let other = Process::new(&machine.configured(&[("redis_urls", "redis://b,redis://c"), ("partitions", "32")]));
    (90..180).for_each(|id| other.add(&world, id));
    world.executor.run_for(5 * SECOND);
    servers[0].link.set(Link::Up);
    world.executor.run_for(20 * SECOND);
    assert_eq!(recorded(&servers), (0..180).collect());
}

#[test]
fn servers_of_other_clusters_are_not_included() {
    let servers = vec![Server::alone("a"), Server::alone("b")];
    let world = World::new(22, servers.clone());
    let process = Process::new(&Machine::new(&world, &[("redis_urls", "redis://a,redis://b")]));
    process.add(&world, 1);
    world.executor.run_for(3 * SECOND);
    assert_eq!(process.answered(Ok(Outcome::Spooled)), [1]);
    assert_eq!(recorded(&servers), [].into());
}

/// A batch of commands waits while the slot of its keys moves.
///
/// Then some keys are on one node and some on the other. The batch must not create another key of
/// the same name, which the key that arrives would replace.
#[test]
fn statistics_are_whole_while_their_slot_moves() {
    let servers = Server::cluster(&["a", "b"]);
    let world = World::new(22, servers.clone());
    let process = Process::new(&Machine::new(&world, &[("redis_urls", "redis://a,redis://b")]));
    process.add(&world, 0);
    world.executor.run_for(2 * SECOND);
    let key = "{verve}:windows:60";
    let (from, to) = if servers[0].owns(key) { (0, 1) } else { (1, 0) };
    servers[from].begin_to_move(slot(key), &servers[to]);
    process.add(&world, 1);
    world.executor.run_for(5 * SECOND);
    servers[from].move_slot(slot(key), &servers[to]);
    process.add(&world, 2);
    world.executor.run_for(20 * SECOND);
    assert_eq!(process.answered(Ok(Outcome::New)), [0, 1, 2]);
    let moved = statistics(&servers[to]);
    assert_eq!(
        (moved.get("requests"), moved.get("new")),
        (Some(&3), Some(&3)),
        "{moved:?}"
    );
}

/// No id is `ok` in a window that is missing in the index and in the spool.
///
/// The index of windows is on one node, and a set on another. If the window of an id cannot be
/// added to the index, the id is `ok` only once the spool has the entry. Otherwise, the reporter
/// might not expect the window, and the instance might die before it flushes its statistics.
#[test]
fn no_id_is_ok_in_a_window_that_is_neither_in_the_index_nor_in_the_spool() {
    let servers = Server::cluster(&["a", "b"]);
    let world = World::new(23, servers.clone());
    let variables = [("redis_urls", "redis://a,redis://b"), ("partitions", "16")];
    let machine = Machine::new(&world, &variables);
    let key = "{verve}:windows:60";
    let index = if servers[0].owns(key) { &servers[0] } else { &servers[1] };
    index.is_full.set(true);
    machine.set_disk_fault(Some(SpoolError::DiskFull));
    let process = Process::new(&machine);
    (0..30).for_each(|id| process.add(&world, id));
    world.executor.run_for(5 * SECOND);
    assert_eq!(process.answered(Err(NotCounted::Unavailable)).len(), 30);
    let elsewhere = recorded(&servers).len();
    assert!((1..30).contains(&elsewhere), "{elsewhere}");
    // The disk works again: each id is ok, with one entry for all of them.
    machine.set_disk_fault(None);
    (0..30).for_each(|id| process.add(&world, id));
    world.executor.run_for(SECOND / 10);
    assert_eq!(process.answered(Ok(Outcome::Duplicate)).len(), elsewhere);
    assert_eq!(process.answered(Ok(Outcome::Spooled)).len(), 30 - elsewhere);
    assert_eq!(machine.rows("commands"), 2);
    // The instance dies, and the next instance counts in another window.
    give_up_all(&world);
    index.is_full.set(false);
    machine.set_clock(300_000);
    let process = Process::new(&machine);
    process.add(&world, 30);
    world.executor.run_for(20 * SECOND);
    assert_eq!(recorded(&servers), (0..31).collect());
    assert_eq!(index.sorted_len(key), 2);
    assert_eq!((machine.rows("ids"), machine.rows("commands")), (0, 0));
}

/// An instance that is redirected to a new primary forgets what it knew before.
///
/// The replica that has taken over lacks the last writes, because the primary was isolated. The
/// connections to the old primary stay open. The instance still forgets what it knew of the
/// set: it sets its expiry again, and sends ids again that it has sent before.
#[test]
fn a_set_that_a_replica_has_taken_over_is_begun_again() {
    let servers = Server::cluster_with(&["a", "b", "c"], &["d"]);
    let world = World::new(22, servers.clone());
    let process = Process::new(&Machine::new(
        &world,
        &[("redis_urls", "redis://a,redis://b,redis://c")],
    ));
    process.add(&world, 1);
    world.executor.run_for(SECOND);
    let has_ids = |server: &Server| server.entries().into_keys().find(|key| key.contains(":ids:"));
    let (of, key) = servers
        .iter()
        .find_map(|server| has_ids(server).map(|key| (server, key)))
        .expect("one");
    of.fail_over_to(&servers[3]);
    for id in [2, 1] {
        process.add(&world, id);
        world.executor.run_for(SECOND);
    }
    assert_eq!(process.answered(Ok(Outcome::New)).len(), 3);
    assert_eq!(servers[3].members(&key), ["1", "2"].map(str::to_owned).into());
    assert!(servers[3].entries()[&key].expires_ms.is_some(), "{key} does not expire");
}

/// Without the right to read the map, a redirect is no sign of a new primary.
#[test]
fn ids_are_remembered_without_the_right_to_read_the_map() {
    let servers = Server::cluster(&["a", "b", "c"]);
    servers.iter().for_each(|server| server.hides_map.set(true));
    let world = World::new(23, servers.clone());
    let variables = [("redis_urls", "redis://a,redis://b,redis://c"), ("partitions", "16")];
    let process = Process::new(&Machine::new(&world, &variables));
    let commands = || servers.iter().map(|server| server.commands.get()).sum::<u64>();
    (0..100).for_each(|id| process.add(&world, id));
    world.executor.run_for(SECOND);
    // Each second the map is read again, and is empty.
    for round in 1..6 {
        let before = commands();
        process.add(&world, 100 * round);
        (0..100).for_each(|id| process.add(&world, id));
        world.executor.run_for(SECOND);
        let made = commands() - before;
        assert!(made < 20, "round {round}: {made} commands");
    }
    assert_eq!(process.answered(Ok(Outcome::New)).len(), 105);
}
