//! The core's own code, against simulated servers.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use verve_counter_core::answer::{Answer, Limit, NotCounted, Outcome};
use verve_counter_core::callback::Callback;
use verve_counter_core::config::InvalidVariable;
use verve_counter_core::counter::Counter;
use verve_counter_core::instance::Instance;
use verve_counter_core::once::Once;
use verve_counter_core::spooled::SpoolError;
use verve_protocol::slot::slot;
use verve_protocol::{CounterName, Id};
use verve_simulation::host::{Machine, World};
use verve_simulation::redis::{Link, Server};

const SECOND: Duration = Duration::from_secs(1);

/// An id, and the name of the counter that it is of, if that has one.
type Counted = (Option<String>, i64);

/// An instance of the component.
#[derive(Clone)]
struct Process<const BLOCKS: bool = false> {
    machine: Machine<BLOCKS>,
    instance: Rc<Once<Rc<Instance<Machine<BLOCKS>>>, InvalidVariable>>,
    answers: Rc<RefCell<Vec<(i64, Answer)>>>,
    /// The ids that were accepted, by the counter's name if it has one.
    accepted: Rc<RefCell<BTreeSet<Counted>>>,
}

impl<const BLOCKS: bool> Process<BLOCKS> {
    fn new(machine: &Machine<BLOCKS>) -> Self {
        Self {
            machine: machine.clone(),
            instance: Rc::default(),
            answers: Rc::default(),
            accepted: Rc::default(),
        }
    }

    async fn counter(&self) -> Result<Counter<Machine<BLOCKS>>, InvalidVariable> {
        let load = async || Instance::load(self.machine.clone()).await;
        self.instance.get_on(&self.machine, load).await.map(Counter::new)
    }

    /// A request.
    fn request(&self, world: &World, id: i64, name: Option<&str>, callback: Option<&str>) {
        let process = self.clone();
        let name: Option<CounterName> = name.map(|name| name.parse().expect("a name"));
        let callback = callback.map(|endpoint| Callback {
            endpoint: endpoint.parse().expect("an endpoint"),
            method: None,
        });
        world.executor.spawn(async move {
            let counter = process.counter().await.expect("valid variables");
            let of = name.as_ref().map(ToString::to_string);
            let counter = name.map_or_else(|| counter.clone(), |name| counter.open(name));
            let answer = counter.add(Id(id), callback).await;
            if answer.is_ok() {
                process.accepted.borrow_mut().insert((of, id));
            }
            process.answers.borrow_mut().push((id, answer));
        });
    }

    fn add(&self, world: &World, id: i64) {
        self.request(world, id, None, None);
    }

    /// The ids that were answered so.
    fn answered(&self, wanted: Answer) -> Vec<i64> {
        let answers = self.answers.borrow();
        let found = answers.iter().filter(|(_, answer)| *answer == wanted);
        let mut ids: Vec<i64> = found.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }
}

fn world(seed: u64) -> (Rc<World>, Rc<Server>) {
    let server = Server::alone("redis");
    (World::new(seed, vec![server.clone()]), server)
}

fn machine(world: &Rc<World>, variables: &[(&'static str, &str)]) -> Machine {
    let mut all = vec![("redis_urls", "redis://redis")];
    all.extend(variables);
    Machine::new(world, &all)
}

/// The ids in Redis, of all windows and counters.
fn recorded(servers: &[Rc<Server>]) -> BTreeSet<i64> {
    let keys = servers.iter().flat_map(|server| {
        let keys: Vec<String> = server.entries().into_keys().collect();
        keys.into_iter().map(move |key| (server, key))
    });
    let ids = keys.filter(|(_, key)| key.contains(":ids:"));
    ids.flat_map(|(server, key)| server.members(&key))
        .map(|id| id.parse().expect("an id"))
        .collect()
}

/// The same, by the counter's name if it has one.
fn recorded_by_counter(server: &Server) -> BTreeSet<Counted> {
    let keys = server.entries().into_keys().filter(|key| key.contains(":ids:"));
    let ids = keys.flat_map(|key| {
        let of = key.split_once(":ids:").and_then(|(before, _)| before.split_once('/'));
        let of = of.map(|(_, name)| name.to_owned());
        let ids = server.members(&key);
        ids.into_iter().map(move |id| (of.clone(), id.parse().expect("an id")))
    });
    ids.collect()
}

/// What the statistics say, of all windows.
fn statistics(server: &Server) -> BTreeMap<String, i64> {
    let mut all: BTreeMap<String, i64> = BTreeMap::new();
    for key in server.entries().into_keys().filter(|key| key.contains(":stats:")) {
        for (field, value) in server.fields(&key) {
            *all.entry(field).or_default() += value.parse::<i64>().expect("a number");
        }
    }
    all
}

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
    // Known to be there by now.
    processes[0].add(&world, 7);
    world.executor.run_for(SECOND);
    assert_eq!(processes[0].answers.borrow().last(), Some(&(7, Ok(Outcome::Duplicate))));
    assert!(world.executor.is_empty(), "something goes on for ever");
    let expires = |key: &String| server.entries()[key].expires_ms.is_some();
    assert!(server.entries().keys().all(expires), "{:#?}", server.entries());
}

#[test]
fn what_is_accepted_while_redis_is_away_is_counted_later() {
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
        // The host dies, and comes again.
        let tasks: Vec<u64> = world.executor.polls().into_keys().collect();
        tasks.into_iter().for_each(|task| world.executor.give_up(task));
        server.link.set(Link::Up);
        let process = Process::new(&machine);
        process.add(&world, 100);
        world.executor.run_for(20 * SECOND);
        assert_eq!(recorded(&world.servers), (0..=100).collect(), "{link:?}");
        let jobs = server.stream_len("{verve}:callbacks");
        // What the server did though its answer was lost may be there twice.
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
fn a_server_that_has_lost_its_data_is_told_again() {
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
    let process = Process::new(&machine(&world, &[]));
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
    // A slot moves, while ids of it come.
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
    // A node goes away: its ids are spooled, and the others' are not.
    servers[1].link.set(Link::Refused);
    (500..600).for_each(|id| process.add(&world, id));
    world.executor.run_for(3 * SECOND);
    let spooled = process.answered(Ok(Outcome::Spooled)).len();
    assert!((1..100).contains(&spooled), "{spooled}");
    servers[1].link.set(Link::Up);
    world.executor.run_for(10 * SECOND);
    assert_eq!(recorded(&servers), (0..600).collect());
}

/// What an instance that serves one request answers, and with how many commands of the servers.
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
    assert_eq!(lasting, ["{verve}:callbacks", "{verve}:counters"]);
    // An attempt whose answer is lost counts nobody twice.
    server.link.set(Link::Deaf);
    assert_eq!(once(&world, &machine, 2, None, None).0, Err(NotCounted::Unavailable));
    server.link.set(Link::Up);
    assert_eq!(once(&world, &machine, 2, None, None).0, Ok(Outcome::Duplicate));
    assert_eq!(statistics(&server)["requests"], 5);
    // Without a server there is nowhere to put it.
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
    // The first that is named is away, and has no statistics: the others know where things are.
    let of_statistics = servers.iter().position(|server| !statistics(server).is_empty());
    let of_statistics = of_statistics.expect("some have been told");
    let away = &servers[(of_statistics + 1) % 3];
    let named = format!("redis://{},redis://{}", away.host, servers[of_statistics].host);
    away.link.set(Link::Refused);
    let machine = Machine::new(&world, &[("redis_urls", &named), ("partitions", "8")]);
    // Also where they may not tell.
    for (first, hide) in [(200, false), (600, true)] {
        servers.iter().for_each(|server| server.hides_map.set(hide));
        let answers = (first..first + 50).map(|id| once(&world, &machine, id, None, None).0);
        let new = answers.filter(|answer| *answer == Ok(Outcome::New)).count();
        assert!((1..50).contains(&new), "{hide}: {new}");
    }
    servers.iter().for_each(|server| server.hides_map.set(false));
    away.link.set(Link::Up);
    // Many at once go each where they belong.
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

/// What an instance that serves one request answers to ids that it is given at once, so many at a time.
fn many(world: &Rc<World>, machine: &Machine, ids: &[i64]) -> Vec<Answer> {
    let machine = machine.blocking();
    let process = Process::new(&machine);
    let ids: Vec<Id> = ids.iter().copied().map(Id).collect();
    let told = Rc::new(RefCell::new(Vec::new()));
    let answers = told.clone();
    world.executor.spawn(async move {
        let counter = process.counter().await.expect("valid");
        told.replace(counter.add_many(&ids).await);
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
    // The ids, their statistics, and that nobody sends these again.
    assert_eq!(server.commands.get(), 3);
    let entries = server.entries();
    assert!(entries.values().all(|entry| entry.expires_ms.is_some()), "{entries:?}");
    // An answer is lost: at the next attempt they are there, and are counted once.
    server.link.set(Link::Deaf);
    let deaf = server.clone();
    world.executor.after(SECOND / 2, move || deaf.link.set(Link::Up));
    assert_eq!(many(&world, &machine, &[3, 4]), [again; 2]);
    let counted = statistics(&server);
    assert_eq!((counted["requests"], counted["new"], counted["duplicate"]), (5, 2, 3));
    // A server that was away is asked anew each time.
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

/// An answer is lost, and what was asked has moved by the next attempt: it is counted once all the same.
#[test]
fn what_is_sent_on_after_a_lost_answer_is_counted_once() {
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

/// Requests, some with callbacks and to a named counter, and a cut in between; and then others.
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
fn whatever_is_given_up_holds_nobody_up_and_loses_nothing() {
    let (polls, process, world) = scenario(10, None);
    assert_eq!(process.answers.borrow().len(), 18);
    assert!(world.executor.is_empty());
    let mut tried = 0;
    for (task, polls) in polls {
        for n in 1..polls {
            let (_, process, world) = scenario(10, Some((task, n)));
            // Whoever comes then is answered in time.
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
            // Of what was told in the moment of giving up some may be missing, and nothing is told twice.
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
