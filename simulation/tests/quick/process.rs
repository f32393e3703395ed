//! Instances of the component on simulated machines, and the content of Redis.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use verve_counter_core::answer::Answer;
use verve_counter_core::callback::Callback;
use verve_counter_core::config::InvalidVariable;
use verve_counter_core::counter::Counter;
use verve_counter_core::instance::Instance;
use verve_counter_core::single_flight::SingleFlight;
use verve_protocol::{CounterName, Id};
use verve_simulation::host::Machine;
use verve_simulation::redis::Server;
use verve_simulation::world::World;

pub const SECOND: Duration = Duration::from_secs(1);

/// An id, and the name of its counter, if the counter has one.
pub type CountedId = (Option<String>, i64);

/// An instance of the component.
#[derive(Clone)]
pub struct Process<const BLOCKS: bool = false> {
    pub machine: Machine<BLOCKS>,
    pub instance: Rc<SingleFlight<Rc<Instance<Machine<BLOCKS>>>, InvalidVariable>>,
    pub answers: Rc<RefCell<Vec<(i64, Answer)>>>,
    /// The ids that were accepted, with the names of their counters.
    pub accepted: Rc<RefCell<BTreeSet<CountedId>>>,
}

impl<const BLOCKS: bool> Process<BLOCKS> {
    pub fn new(machine: &Machine<BLOCKS>) -> Self {
        Self {
            machine: machine.clone(),
            instance: Rc::default(),
            answers: Rc::default(),
            accepted: Rc::default(),
        }
    }

    pub async fn counter(&self) -> Result<Counter<Machine<BLOCKS>>, InvalidVariable> {
        let load = async || Instance::load(self.machine.clone()).await;
        self.instance.get_on(&self.machine, load).await.map(Counter::new)
    }

    /// Starts a request.
    pub fn request(&self, world: &World, id: i64, name: Option<&str>, callback: Option<&str>) {
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

    pub fn add(&self, world: &World, id: i64) {
        self.request(world, id, None, None);
    }

    /// Returns the ids that received this answer.
    pub fn answered(&self, wanted: Answer) -> Vec<i64> {
        let answers = self.answers.borrow();
        let found = answers.iter().filter(|(_, answer)| *answer == wanted);
        let mut ids: Vec<i64> = found.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }
}

pub fn world(seed: u64) -> (Rc<World>, Rc<Server>) {
    let server = Server::alone("redis");
    (World::new(seed, vec![server.clone()]), server)
}

pub fn machine(world: &Rc<World>, variables: &[(&'static str, &str)]) -> Machine {
    let mut all = vec![("redis_urls", "redis://redis")];
    all.extend(variables);
    Machine::new(world, &all)
}

/// Drops all tasks, as if the host died.
pub fn give_up_all(world: &World) {
    let tasks: Vec<u64> = world.executor.polls().into_keys().collect();
    tasks.into_iter().for_each(|task| world.executor.give_up(task));
}

/// Returns the ids in Redis, of all windows and counters.
pub fn recorded(servers: &[Rc<Server>]) -> BTreeSet<i64> {
    let keys = servers.iter().flat_map(|server| {
        let keys: Vec<String> = server.entries().into_keys().collect();
        keys.into_iter().map(move |key| (server, key))
    });
    let ids = keys.filter(|(_, key)| key.contains(":ids:"));
    ids.flat_map(|(server, key)| server.members(&key))
        .map(|id| id.parse().expect("an id"))
        .collect()
}

/// Returns the ids in Redis, with the names of their counters.
pub fn recorded_by_counter(server: &Server) -> BTreeSet<CountedId> {
    let keys = server.entries().into_keys().filter(|key| key.contains(":ids:"));
    let ids = keys.flat_map(|key| {
        let of = key.split_once(":ids:").and_then(|(before, _)| before.split_once('/'));
        let of = of.map(|(_, name)| name.to_owned());
        let ids = server.members(&key);
        ids.into_iter().map(move |id| (of.clone(), id.parse().expect("an id")))
    });
    ids.collect()
}

/// Returns the sums of the statistics of all windows.
pub fn statistics(server: &Server) -> BTreeMap<String, i64> {
    let mut all: BTreeMap<String, i64> = BTreeMap::new();
    for key in server.entries().into_keys().filter(|key| key.contains(":stats:")) {
        for (field, value) in server.fields(&key) {
            *all.entry(field).or_default() += value.parse::<i64>().expect("a number");
        }
    }
    all
}
