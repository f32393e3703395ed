//! Runs a plan, and checks the outcome.

mod faults;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use verve_counter_core::answer::Answer;
use verve_counter_core::callback::Callback;
use verve_counter_core::config::InvalidVariable;
use verve_counter_core::counter::Counter;
use verve_counter_core::instance::Instance;
use verve_counter_core::single_flight::SingleFlight;
use verve_protocol::{Id, Keys, Method, Partitions, Window, WindowLength, WindowLengths};
use verve_reporter::simulated::Settings;

use verve_counter_core::ports::Clock as _;

use crate::endpoints::Endpoints;
use crate::host::Machine;
use crate::kafka::{Broker, Committed};
use crate::mutation::Mutation;
use crate::plan::{ENDPOINTS, Plan, Request};
use crate::redis::Server;
use crate::replica::Replica;
use crate::verdict::{self, Attempt, Happened, Loss, Wrong};
use crate::world::World;

/// The grace: how long after its end a window is first reported.
const GRACE: Duration = Duration::from_secs(2);
/// How long the parts may take to settle after the last fault, besides the windows.
const SETTLES: Duration = Duration::from_secs(90);
/// How many commits a leader may need after the last fault.
///
/// Each may first wait for one of other counters.
const COMMITS: u32 = 20;

/// How long a replica may take to notice that Redis is unreachable.
const FOUND_OUT: Duration = Duration::from_secs(10);
/// The longest time until a callback is delivered while nothing fails.
const DELIVERED: Duration = Duration::from_secs(15);
/// The endpoint that is called for each report, if there are callbacks.
const FIXED: &str = "https://e0.example/fixed";

/// The names of keys that need not expire, besides those of reports.
///
/// Redis has each of them once, or once per counter.
const FOR_EVER: [&str; 5] = ["format", "counters", "callbacks", "callbacks:retry", "callbacks:dead"];

/// The outcome of a plan.
pub struct Outcome {
    /// A hash of all commands to Redis and their times.
    pub trace: u64,
    /// The simulated time.
    pub simulated: Duration,
    /// The number of requests that were answered.
    pub answered: usize,
    /// The number of faults.
    pub faults: usize,
    /// Whether the code with the inserted fault was reached.
    pub is_met: bool,
    /// The problems.
    pub wrong: Vec<Wrong>,
    /// What happened, in words, if that was requested.
    pub story: Vec<String>,
}

/// An instance of the component, which keeps its state until it is killed.
type Kept = Rc<SingleFlight<Rc<Instance<Machine>>, InvalidVariable>>;

struct Run {
    plan: Plan,
    world: Rc<World>,
    machines: Vec<Machine>,
    instances: RefCell<BTreeMap<(usize, u8), Kept>>,
    broker: Rc<Broker>,
    endpoints: Rc<Endpoints>,
    replicas: Vec<Replica>,
    keys: Keys,
    lengths: WindowLengths,
    attempts: RefCell<Vec<Attempt>>,
    losses: RefCell<Vec<Loss>>,
    /// Since when each server is unreachable, if it is.
    away: Vec<Cell<Option<Duration>>>,
    /// The problems that were found during the run.
    wrong: RefCell<Vec<Wrong>>,
    /// The next process number of an instance that serves one request.
    ///
    /// The numbers of other instances are lower.
    next: Cell<u64>,
}

/// Runs a plan, with a story and a mutation if requested.
///
/// # Panics
/// If the code under test panics.
#[must_use]
pub fn run(plan: &Plan, with_story: bool, mutation: Option<&'static Mutation>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    let runtime = runtime.expect("a runtime");
    // Seeds what the reporter chooses at random, such as its pauses.
    fastrand::seed(plan.seed);
    runtime.block_on(async {
        let servers = match plan.servers {
            1 => vec![Server::alone("redis")],
            3 => Server::cluster(&["redis-0", "redis-1", "redis-2"]),
            _ => Server::cluster_with(&["redis-0", "redis-1", "redis-2"], &["redis-3"]),
        };
        let world = World::with(plan.seed, servers, with_story, mutation);
        world.latency_us.set(plan.latency_ms * 1000);
        let run = Rc::new(Run::new(plan, &world));
        run.clone().to_its_end().await
    })
}

impl Run {
    fn new(plan: &Plan, world: &Rc<World>) -> Self {
        let seconds: Vec<String> = plan.lengths_seconds().map(|seconds| seconds.to_string()).collect();
        let seconds = seconds.join(",");
        let partitions = plan.partitions.to_string();
        let urls: Vec<String> = (world.servers.iter())
            .map(|server| format!("redis://{}", server.host))
            .collect();
        let urls = urls.join(",");
        let variables = [
            ("redis_urls", urls.as_str()),
            ("window_seconds", seconds.as_str()),
            ("partitions", partitions.as_str()),
            ("redis_wait_replicas", if plan.is_waited_for() { "1" } else { "0" }),
            ("log", "off"),
        ];
        let keys = Keys::new("verve".parse().expect("a namespace"));
        let lengths: WindowLengths = seconds.parse().expect("lengths");
        let settings = Settings {
            keys: keys.clone(),
            partitions: partitions.parse::<Partitions>().expect("a number of partitions"),
            lengths: lengths.clone(),
            grace: GRACE,
            late: Duration::from_secs(plan.late_seconds),
            idle: Duration::from_secs(plan.idle_seconds),
            has_named: plan.counters > 0,
            has_callbacks: plan.attempts.is_some(),
            callback: plan
                .attempts
                .map(|_| (FIXED.parse().expect("an endpoint"), Method::Post)),
            attempts: plan.attempts.unwrap_or_default(),
        };
        let endpoints = Endpoints::new(ENDPOINTS);
        let broker: Rc<Broker> = Rc::default();
        broker.commit_ms.set(plan.commit_ms);
        let replica = |number| {
            let name = format!("replica-{number}");
            Replica::new(world, &broker, &endpoints, settings.clone(), name)
        };
        let machines = plan.machines.iter().map(|_| Machine::new(world, &variables));
        let machines: Vec<Machine> = machines.collect();
        for (machine, ppm) in machines.iter().zip(&plan.drifts_ppm) {
            machine.set_drift(*ppm);
        }
        Self {
            plan: plan.clone(),
            world: world.clone(),
            machines,
            instances: RefCell::default(),
            replicas: (0..plan.replicas).map(replica).collect(),
            broker,
            endpoints,
            keys,
            lengths,
            attempts: RefCell::default(),
            losses: RefCell::default(),
            away: world.servers.iter().map(|_| Cell::default()).collect(),
            wrong: RefCell::default(),
            next: Cell::new(1 << 32),
        }
    }

    async fn to_its_end(self: Rc<Self>) -> Outcome {
        let executor = &self.world.executor;
        for request in self.plan.requests.clone() {
            let run = self.clone();
            executor.after(Duration::from_millis(request.at_ms), move || run.request(request));
        }
        for fault in self.plan.faults.clone() {
            let run = self.clone();
            executor.after(Duration::from_millis(fault.at_ms), move || run.begin(fault));
        }
        self.world.servers.iter().for_each(|server| self.follow(server));
        self.replicas.iter().for_each(Replica::start);
        let active = Duration::from_secs(self.plan.seconds);
        executor.drive(active).await;
        self.world.note(|| "from here on nothing fails any more".to_owned());
        self.mend();
        // Only requests make instances drain their spools. By now the clocks of the machines are
        // right.
        for second in 1..=3 {
            for machine in 0..self.machines.len() {
                let request = Request {
                    at_ms: 0,
                    machine,
                    instance: 0,
                    id: -1,
                    counter: None,
                    endpoint: None,
                    gives_up_ms: None,
                };
                let run = self.clone();
                executor.after(Duration::from_secs(10 * second), move || run.request(request));
            }
        }
        let windows = 3 * Duration::from_secs(self.plan.lengths_seconds().max().unwrap_or_default());
        executor.drive(active + GRACE + windows + self.settles()).await;
        if let Some(due) = self.last_retry() {
            executor.drive(due + DELIVERED).await;
        }
        let happened = Happened {
            length: self.lengths.main(),
            is_cluster: self.plan.servers > 1,
            commit_ms: self.plan.commit_ms,
            idle_ms: self.plan.idle_seconds * 1000,
            losses: self.losses.borrow().clone(),
        };
        let (committed, now_ms) = (self.broker.committed(), self.world.now_us() / 1000);
        let of_length = |length: WindowLength| {
            let attempts = self.attempts.borrow();
            let attempts: Vec<Attempt> = attempts.iter().map(|attempt| attempt.within(length)).collect();
            let committed = committed
                .iter()
                .filter(|committed| committed.record.window.length() == length);
            let committed: Vec<Committed> = committed.cloned().collect();
            let happened = Happened {
                length,
                ..happened.clone()
            };
            verdict::of(&attempts, &committed, &happened, now_ms)
        };
        let mut wrong: Vec<Wrong> = self.lengths.all().flat_map(of_length).collect();
        if self.plan.attempts.is_some() {
            wrong.extend(self.of_callbacks(&happened));
        }
        for (number, machine) in self.machines.iter().enumerate() {
            let left = machine.rows("ids") + machine.rows("commands");
            if left > 0 {
                wrong.push(Wrong::general(format!(
                    "the spool of machine {number} still has {left} rows"
                )));
            }
        }
        self.check_problems(<[String]>::is_empty, "says that something is wrong, and all is well");
        wrong.append(&mut self.wrong.borrow_mut());
        wrong.extend(self.never_expire());
        wrong.extend(self.never_shrink());
        let ended = self.replicas.iter().filter(|replica| replica.has_ended()).count();
        if ended > 0 {
            wrong.push(Wrong::general(format!("{ended} replicas have ended by themselves")));
        }
        if !executor.is_empty() {
            wrong.push(Wrong::general(format!(
                "{} tasks of instances go on for ever",
                executor.len()
            )));
        }
        self.replicas.iter().for_each(Replica::kill);
        let attempts = self.attempts.borrow();
        Outcome {
            trace: self.world.trace(),
            simulated: executor.now(),
            answered: attempts.iter().filter(|attempt| attempt.answer.is_some()).count(),
            faults: self.plan.faults.len(),
            is_met: self.world.is_met.get(),
            wrong,
            story: self.world.story(),
        }
    }

    /// Returns how long the parts may take to settle after the last fault.
    ///
    /// The windows are not included.
    fn settles(&self) -> Duration {
        let commits = COMMITS * Duration::from_millis(self.plan.commit_ms);
        Duration::from_secs(self.plan.late_seconds) + SETTLES + commits
    }

    /// Returns when the last callback that waits is due, if one waits.
    fn last_retry(&self) -> Option<Duration> {
        let key = self.keys.callbacks_retry();
        let servers = self.world.servers.iter();
        let due_ms = servers
            .filter_map(|server| server.highest_score(&key))
            .reduce(f64::max)?;
        let ahead_ms = due_ms - (self.world.now_us() / 1000) as f64;
        Some(self.world.executor.now() + Duration::from_millis(ahead_ms.max(0.0) as u64))
    }

    /// Returns a problem for each key that should expire and does not.
    ///
    /// Keys that increase in number and that nothing removes must expire automatically.
    fn never_expire(&self) -> Vec<Wrong> {
        let entries = self.world.servers.iter().flat_map(|server| server.entries());
        let is_one_of_few = |key: &str| {
            let (_, tagged) = key.split_once('}').unwrap_or(("", key));
            let (_counter, name) = tagged.split_once(':').unwrap_or(("", tagged));
            FOR_EVER.contains(&name) || name.starts_with("reports:") || name.starts_with("counters:in-use:")
        };
        // If a node of a cluster has lost the index, no search finds the ids on other nodes.
        let is_lost = self.plan.servers > 1 && !self.losses.borrow().is_empty();
        let is_found = |key: &str| !is_lost || !key.contains("ids:");
        entries
            .filter(|(key, entry)| entry.expires_ms.is_none() && !is_one_of_few(key) && is_found(key))
            .map(|(key, _)| Wrong::general(format!("{key} does not expire")))
            .collect()
    }

    /// Returns a problem if the list of open windows keeps final ones.
    fn never_shrink(&self) -> Vec<Wrong> {
        let seconds = self.plan.late_seconds + SETTLES.as_secs();
        let of_length = |length: WindowLength| {
            let (key, most) = (self.keys.reports_open(length), 3 + seconds / length.seconds());
            let servers = self.world.servers.iter();
            let lens = servers.map(|server| server.sorted_len(&key) as u64);
            let too_long = lens.filter(|len| *len > most);
            too_long
                .map(|len| Wrong::general(format!("{key} still has {len} windows, and not {most} at most")))
                .collect::<Vec<_>>()
        };
        self.lengths.all().flat_map(of_length).collect()
    }

    /// Returns the problems with callbacks.
    fn of_callbacks(&self, happened: &Happened) -> Vec<Wrong> {
        let keys = &self.keys;
        let server = self.world.servers.iter().find(|server| server.owns(&keys.callbacks()));
        let server = server.expect("the owner of the slot");
        let dead = server.stream(&keys.callbacks_dead());
        // Callbacks that were queued a moment ago may still be on their way.
        let until_ms = self.world.now_us() / 1000 - DELIVERED.as_millis() as u64;
        let (attempts, mut committed) = (self.attempts.borrow(), self.broker.committed());
        committed
            .retain(|committed| committed.at_ms < until_ms && committed.record.window.length() == self.lengths.main());
        let mut wrong = verdict::of_callbacks(
            &attempts,
            &committed,
            &self.endpoints.received(),
            &dead,
            FIXED,
            happened,
        );
        let left = server.stream_len_at(&keys.callbacks(), until_ms) + server.sorted_len(&keys.callbacks_retry());
        if left > 0 {
            wrong.push(Wrong::general(format!("{left} callbacks are still waiting")));
        }
        wrong
    }

    /// Starts a request.
    fn request(self: &Rc<Self>, request: Request) {
        let instances = self.plan.machines[request.machine];
        if instances == 0 {
            return self.request_once(request);
        }
        let instance = request.instance % instances;
        let kept = self
            .instances
            .borrow_mut()
            .entry((request.machine, instance))
            .or_default()
            .clone();
        let (run, machine) = (self.clone(), self.machines[request.machine].clone());
        let executor = self.world.executor.clone();
        let task = executor.spawn_in(process(request.machine, instance), async move {
            let load = async || Instance::load(machine.clone()).await;
            let instance = kept.get_on(&machine, load).await.expect("valid variables");
            run.count(instance, request).await;
        });
        if let Some(gives_up_ms) = request.gives_up_ms {
            let give_up = executor.clone();
            executor.after(Duration::from_millis(gives_up_ms), move || give_up.give_up(task));
        }
    }

    /// Starts a request on a machine that has a new instance for each request.
    fn request_once(self: &Rc<Self>, request: Request) {
        let process = self.next.replace(self.next.get() + 1);
        let (run, machine) = (self.clone(), self.machines[request.machine].blocking());
        self.world.executor.spawn_in(process, async move {
            let instance = Instance::load(machine.clone()).await.expect("valid variables");
            run.count(instance, request).await;
            machine.finish().await;
        });
    }

    /// Counts the id of a request with an instance.
    async fn count<const BLOCKS: bool>(&self, instance: Rc<Instance<Machine<BLOCKS>>>, request: Request) {
        let attempt = self.attempt(request);
        let Attempt { counter, callback, .. } = self.attempts.borrow()[attempt].clone();
        let unnamed = Counter::new(instance);
        let counter = counter.map_or_else(|| unnamed.clone(), |name| unnamed.open(name));
        let callback = callback.map(|endpoint| Callback {
            endpoint: endpoint.parse().expect("an endpoint"),
            method: None,
        });
        let answer = counter.add(Id(request.id), callback).await;
        self.answered(attempt, answer);
    }

    /// Records a request that is about to be counted, and returns its number.
    ///
    /// Its window is the one that is open by the clock of its machine.
    fn attempt(&self, request: Request) -> usize {
        let length = self.lengths.main();
        let window: Window = length.window_at_ms(self.machines[request.machine].now_ms());
        let mut attempts = self.attempts.borrow_mut();
        let number = attempts.len();
        let name = |counter: u8| format!("c{counter}").parse().expect("a name");
        attempts.push(Attempt {
            id: request.id,
            counter: request.counter.map(name),
            callback: request.endpoint.map(|host| format!("https://e{host}.example/{number}")),
            window,
            true_window: length.window_at_ms(self.world.now_us() / 1000),
            at_ms: self.world.now_us() / 1000,
            answered_ms: self.world.now_us() / 1000,
            answer: None,
            may_be_spooled: false,
        });
        number
    }

    fn answered(&self, attempt: usize, answer: Answer) {
        let mut attempts = self.attempts.borrow_mut();
        let attempt = &mut attempts[attempt];
        attempt.answer = Some(answer);
        attempt.answered_ms = self.world.now_us() / 1000;
        self.world
            .note(|| format!("id {} of {}: {answer:?}", attempt.id, attempt.window));
    }
}

/// Returns the process number of an instance.
fn process(machine: usize, instance: u8) -> u64 {
    1 + machine as u64 * 256 + u64::from(instance)
}
