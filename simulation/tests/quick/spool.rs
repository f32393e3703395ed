//! Ids that are accepted while Redis is unreachable.

use verve_counter_core::answer::{NotCounted, Outcome};
use verve_counter_core::spooled::SpoolError;
use verve_simulation::redis::Link;

use crate::process::{Process, SECOND, give_up_all, machine, recorded, statistics, world};

#[test]
fn ids_accepted_while_redis_is_unreachable_are_counted_later() {
    for link in [Link::Refused, Link::Silent, Link::Deaf] {
        let (world, server) = world(2);
        let machine = machine(&world, &[]);
        let process = Process::new(&machine);
        process.add(&world, 0);
        world.executor.run_for(SECOND);
        server.link.set(link);
        for id in 1..100 {
            process.request(&world, id, None, (id < 10).then_some("http://game.example/"));
        }
        world.executor.run_for(5 * SECOND);
        assert_eq!(process.answered(Ok(Outcome::Spooled)).len(), 99, "{link:?}");
        assert!(machine.rows("ids") > 0 && machine.rows("commands") > 0, "{link:?}");
        // The host dies and restarts.
        give_up_all(&world);
        server.link.set(Link::Up);
        let process = Process::new(&machine);
        process.add(&world, 100);
        world.executor.run_for(20 * SECOND);
        assert_eq!(recorded(&world.servers), (0..=100).collect(), "{link:?}");
        let jobs = server.stream_len("{verve}:callbacks");
        // A job that the server queued may be there twice, since its answer was lost.
        assert!(jobs == 9 || link == Link::Deaf && jobs >= 9, "{link:?}: {jobs}");
        assert_eq!((machine.rows("ids"), machine.rows("commands")), (0, 0), "{link:?}");
        assert!(world.executor.is_empty(), "{link:?}: something goes on for ever");
    }
}

#[test]
fn without_redis_and_a_spool_nothing_is_accepted() {
    let (world, server) = world(3);
    let machine = machine(&world, &[]);
    let process = Process::new(&machine);
    server.link.set(Link::Refused);
    for fault in [
        SpoolError::NotGranted,
        SpoolError::DiskFull,
        SpoolError::Broken("database disk image is malformed".to_owned()),
    ] {
        machine.set_disk_fault(Some(fault));
        process.add(&world, 1);
        world.executor.run_for(3 * SECOND);
        let last = process.answers.borrow().last().copied();
        assert_eq!(last, Some((1, Err(NotCounted::Unavailable))));
    }
    machine.set_disk_fault(None);
    process.add(&world, 1);
    world.executor.run_for(3 * SECOND);
    assert_eq!(process.answers.borrow().last(), Some(&(1, Ok(Outcome::Spooled))));
}

#[test]
fn a_full_server_has_ids_wait_in_the_spool() {
    let (world, server) = world(5);
    let process = Process::new(&machine(&world, &[]));
    server.is_full.set(true);
    (0..10).for_each(|id| process.add(&world, id));
    world.executor.run_for(3 * SECOND);
    assert_eq!(process.answered(Ok(Outcome::Spooled)).len(), 10);
    server.is_full.set(false);
    world.executor.run_for(10 * SECOND);
    assert_eq!(recorded(&world.servers), (0..10).collect());
}

#[test]
fn a_full_spool_accepts_no_more() {
    let (world, server) = world(16);
    let machine = machine(&world, &[("spool_limit", "5")]);
    let process = Process::new(&machine);
    server.link.set(Link::Refused);
    for id in 0..8 {
        process.add(&world, id);
        world.executor.run_for(SECOND / 10);
    }
    assert_eq!(process.answered(Ok(Outcome::Spooled)), [0, 1, 2, 3, 4]);
    assert_eq!(process.answered(Err(NotCounted::Unavailable)), [5, 6, 7]);
    server.link.set(Link::Up);
    world.executor.run_for(10 * SECOND);
    assert_eq!(recorded(&world.servers), (0..5).collect());
}

/// The spool of a disk belongs to one namespace.
///
/// Another namespace neither adds to the spool nor drains it, until the spool is empty. Then the
/// spool belongs to that namespace.
#[test]
fn a_spool_is_of_one_namespace() {
    let (world, server) = world(17);
    let machine = machine(&world, &[]);
    let first = Process::new(&machine);
    server.link.set(Link::Refused);
    first.add(&world, 1);
    world.executor.run_for(SECOND);
    let other = Process::new(&machine.configured(&[("redis_urls", "redis://redis"), ("namespace", "other")]));
    other.add(&world, 2);
    world.executor.run_for(SECOND);
    assert_eq!(other.answered(Err(NotCounted::Unavailable)), [2]);
    server.link.set(Link::Up);
    world.executor.run_for(10 * SECOND);
    assert_eq!(recorded(&world.servers), [1].into());
    assert!(
        server.entries().keys().all(|key| !key.contains("other")),
        "{:?}",
        server.entries()
    );
    // The spool is empty, so the other namespace takes it, and the first one loses it.
    server.link.set(Link::Refused);
    other.add(&world, 3);
    world.executor.run_for(3 * SECOND);
    assert_eq!(other.answered(Ok(Outcome::Spooled)), [3]);
    first.add(&world, 4);
    world.executor.run_for(3 * SECOND);
    assert_eq!(first.answered(Err(NotCounted::Unavailable)), [4]);
    // Two instances of one namespace that find the spool empty can both use it, though one of them
    // opened it before.
    server.link.set(Link::Up);
    world.executor.run_for(10 * SECOND);
    server.link.set(Link::Refused);
    let second = Process::new(&machine);
    second.add(&world, 5);
    world.executor.run_for(3 * SECOND);
    first.add(&world, 6);
    world.executor.run_for(3 * SECOND);
    assert_eq!(second.answered(Ok(Outcome::Spooled)), [5]);
    assert_eq!(first.answered(Ok(Outcome::Spooled)), [1, 6]);
}

#[test]
fn a_spool_of_another_format_is_left_alone() {
    let (world, server) = world(18);
    let machine = machine(&world, &[]);
    machine.change_disk("PRAGMA user_version = 99; CREATE TABLE ids (later TEXT)");
    server.link.set(Link::Refused);
    let process = Process::new(&machine);
    process.add(&world, 1);
    world.executor.run_for(3 * SECOND);
    assert_eq!(process.answered(Err(NotCounted::Unavailable)), [1]);
    server.link.set(Link::Up);
    // The first request makes the instance probe whether Redis is reachable again.
    for _ in 0..2 {
        world.executor.run_for(3 * SECOND);
        process.add(&world, 1);
    }
    world.executor.run_for(3 * SECOND);
    assert_eq!(process.answered(Err(NotCounted::Unavailable)), [1, 1]);
    assert_eq!(process.answered(Ok(Outcome::New)), [1]);
}

/// Statistics that cannot be flushed go to the spool too, and are counted once.
#[test]
fn statistics_are_spooled() {
    for link in [Link::Refused, Link::Deaf] {
        let (world, server) = world(19);
        let machine = machine(&world, &[]);
        let process = Process::new(&machine);
        (0..10).for_each(|id| process.add(&world, id));
        world.executor.run_for(SECOND / 10);
        assert_eq!(process.answered(Ok(Outcome::New)).len(), 10);
        // The statistics are not flushed yet.
        server.link.set(link);
        world.executor.run_for(5 * SECOND);
        assert!(machine.rows("commands") > 0, "{link:?}");
        server.link.set(Link::Up);
        process.add(&world, 10);
        world.executor.run_for(20 * SECOND);
        let statistics = statistics(&server);
        let counted = (statistics["requests"], statistics["new"], statistics["spooled"]);
        assert_eq!(counted, (11, 10, 1), "{link:?}");
        assert_eq!(machine.rows("commands"), 0, "{link:?}");
    }
}

/// An instance that starts while the disk fails drains the spool later.
///
/// It has nothing to spool itself, but still finds what the previous instance left.
#[test]
fn a_disk_that_fails_is_looked_at_again() {
    let (world, server) = world(24);
    let machine = machine(&world, &[]);
    let before = Process::new(&machine);
    server.link.set(Link::Refused);
    before.add(&world, 1);
    world.executor.run_for(SECOND);
    assert_eq!(before.answered(Ok(Outcome::Spooled)), [1]);
    give_up_all(&world);
    server.link.set(Link::Up);
    machine.set_disk_fault(Some(SpoolError::Broken("disk I/O error".to_owned())));
    let process = Process::new(&machine);
    process.add(&world, 2);
    world.executor.run_for(5 * SECOND);
    machine.set_disk_fault(None);
    for id in 3..6 {
        process.add(&world, id);
        world.executor.run_for(10 * SECOND);
    }
    assert_eq!(recorded(&world.servers), (1..6).collect());
    // The reverse case: an instance has looked at an empty disk before another one spools and dies.
    server.link.set(Link::Refused);
    let dies = Process::new(&machine);
    dies.add(&world, 6);
    world.executor.run_for(SECOND);
    assert_eq!(dies.answered(Ok(Outcome::Spooled)), [6]);
    give_up_all(&world);
    server.link.set(Link::Up);
    for id in 7..12 {
        process.add(&world, id);
        world.executor.run_for(10 * SECOND);
    }
    assert_eq!(recorded(&world.servers), (1..12).collect());
}

/// A flush that Redis ran is counted once, though its answer was lost.
///
/// The disk fails too, so the same flush is sent again unchanged.
#[test]
fn statistics_that_go_nowhere_are_counted_once() {
    let (world, server) = world(26);
    let machine = machine(&world, &[]);
    let process = Process::new(&machine);
    (0..10).for_each(|id| process.add(&world, id));
    world.executor.run_for(SECOND / 10);
    server.link.set(Link::Deaf);
    machine.set_disk_fault(Some(SpoolError::DiskFull));
    world.executor.run_for(3 * SECOND);
    assert_eq!(statistics(&server)["requests"], 10);
    for id in 10..14 {
        process.add(&world, id);
        world.executor.run_for(3 * SECOND);
    }
    server.link.set(Link::Up);
    machine.set_disk_fault(None);
    for id in 14..18 {
        process.add(&world, id);
        world.executor.run_for(3 * SECOND);
    }
    assert_eq!(statistics(&server)["requests"], 18);
}

/// Ids in the spool do not wait behind thousands of commands.
///
/// Redis has a high latency, and was unreachable for a while. Ids that enter the spool meanwhile
/// wait for none of the commands, and all commands are drained soon.
#[test]
fn ids_do_not_wait_behind_statistics() {
    let (world, server) = world(18);
    let machine = machine(&world, &[]);
    let process = Process::new(&machine);
    world.latency_us.set(30_000);
    process.add(&world, 1000);
    world.executor.run_for(SECOND);
    server.link.set(Link::Refused);
    for id in 0..120 {
        for counter in ["a", "b", "c", "d", "e"] {
            process.request(&world, id, Some(counter), None);
        }
        world.executor.run_for(SECOND / 4);
    }
    let (ids, commands) = (machine.rows("ids"), machine.rows("commands"));
    assert!(ids > 100 && commands > 1000, "{ids} rows of ids, {commands} commands");
    server.link.set(Link::Up);
    let draining = |what: &str| machine.rows(what) > 0;
    while draining("ids") {
        world.executor.run_for(SECOND / 10);
    }
    machine.change_disk("INSERT INTO ids (key, ids, count) VALUES ('verve:ids:60:1800000000', '999', 1)");
    let before = machine.rows("commands");
    while draining("ids") {
        world.executor.run_for(SECOND / 10);
    }
    let left = machine.rows("commands");
    assert!(
        left > before / 2,
        "{before} commands were left, and {left} when the id was there"
    );
    assert!(recorded(&world.servers).contains(&999));
    world.executor.run_for(30 * SECOND);
    assert!(!draining("commands"), "{} commands are left", machine.rows("commands"));
}

/// Ids in Redis expire automatically, even if the answer to the write was lost.
///
/// The instance has no other place for them, and no other request follows.
#[test]
fn ids_expire_though_the_answer_was_lost() {
    for partitions in ["1", "4"] {
        let (world, server) = world(24);
        let machine = machine(&world, &[("partitions", partitions)]);
        machine.set_disk_fault(Some(SpoolError::DiskFull));
        let process = Process::new(&machine);
        process.add(&world, 0);
        world.executor.run_for(SECOND);
        // The instance counts in the next window.
        machine.set_clock(60_000);
        server.link.set(Link::Deaf);
        (0..20).for_each(|id| process.add(&world, id));
        world.executor.run_for(5 * SECOND);
        assert_eq!(process.answered(Err(NotCounted::Unavailable)).len(), 20);
        let sets = server.entries().into_iter().filter(|(key, _)| key.contains(":ids:"));
        let expires: Vec<bool> = sets.map(|(_, entry)| entry.expires_ms.is_some()).collect();
        assert!(
            expires.len() > 1 && expires.iter().all(|expires| *expires),
            "{expires:?}"
        );
    }
}
