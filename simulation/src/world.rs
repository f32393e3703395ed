//! The simulated world: servers, the time, messages with latency, and the trace.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures::future::{self, Either};

use crate::executor::{Executor, Signal};
use crate::gate::Gate;
use crate::mutation::{Into, Mutation};
use crate::redis::{Answer, Server};

/// The longest latency of a message by default, in microseconds.
const LATENCY_US: u64 = 1000;
/// How many bytes of a command's word enter the trace.
///
/// Scripts are longer, and always the same.
const MOST_NOTED: usize = 1000;
/// The beginning of the simulated time, in Unix milliseconds.
pub const BEGIN_MS: u64 = 1_800_000_000_000;

/// A hash of all commands and their times, which is the same in each run of a seed.
#[derive(Debug)]
struct Trace(Cell<u64>);

impl Trace {
    /// Adds bytes to the FNV-1a hash.
    fn note(&self, bytes: &[u8]) {
        let hash = bytes.iter().fold(self.0.get(), |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        self.0.set(hash);
    }
}

/// The simulated world.
pub struct World {
    /// The executor of all tasks.
    pub executor: Rc<Executor>,
    /// The Redis servers.
    pub servers: Vec<Rc<Server>>,
    trace: Trace,
    /// The longest latency of a message, in microseconds.
    pub latency_us: Cell<u64>,
    /// What happened, in words, if that was requested.
    story: Option<RefCell<Vec<String>>>,
    /// The fault that is inserted.
    mutation: Option<&'static Mutation>,
    /// Whether the code with the inserted fault was reached.
    pub is_met: Cell<bool>,
    /// The number of clients so far.
    clients: Cell<u64>,
}

impl World {
    /// Creates a world with these servers.
    #[must_use]
    pub fn new(seed: u64, servers: Vec<Rc<Server>>) -> Rc<Self> {
        Self::with(seed, servers, false, None)
    }

    /// Creates a world that keeps a story if `story`, with an optional mutation.
    #[must_use]
    pub fn with(seed: u64, servers: Vec<Rc<Server>>, story: bool, mutation: Option<&'static Mutation>) -> Rc<Self> {
        Rc::new(Self {
            executor: Executor::new(seed),
            servers,
            trace: Trace(Cell::new(0xcbf2_9ce4_8422_2325)),
            latency_us: Cell::new(LATENCY_US),
            story: story.then(RefCell::default),
            mutation,
            is_met: Cell::default(),
            clients: Cell::default(),
        })
    }

    /// Returns the script or statement with the inserted fault, if there is one for it.
    #[must_use]
    pub fn mutated(&self, text: &str) -> Option<String> {
        let mutated = self.mutation.and_then(|mutation| mutation.apply(text));
        if mutated.is_some() {
            self.is_met.set(true);
        }
        mutated
    }

    /// Returns whether this fault is inserted. If so, notes that its code was reached.
    #[must_use]
    pub fn has(&self, is_it: impl FnOnce(&Into) -> bool) -> bool {
        let has = self.mutation.is_some_and(|mutation| is_it(&mutation.into));
        self.is_met.set(self.is_met.get() || has);
        has
    }

    /// Returns a hash of all commands so far and their times.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.trace.0.get()
    }

    /// Returns what happened, in words.
    #[must_use]
    pub fn story(&self) -> Vec<String> {
        self.story.iter().flat_map(|story| story.borrow().clone()).collect()
    }

    /// Adds a line to the story.
    pub fn note(&self, what: impl FnOnce() -> String) {
        if let Some(story) = &self.story {
            let now = self.executor.now().as_secs_f64();
            story.borrow_mut().push(format!("{now:9.3} {}", what()));
        }
    }

    /// Runs a client's command on a server, with the inserted fault.
    #[must_use]
    pub fn execute(&self, server: &Server, words: &[String], is_asked: bool, client: u64) -> Answer {
        self.trace.note(&self.now_us().to_le_bytes());
        words
            .iter()
            .for_each(|word| self.trace.note(&word.as_bytes()[..word.len().min(MOST_NOTED)]));
        if let Some(ignored) = self.mutation.and_then(|mutation| mutation.ignores(words)) {
            self.is_met.set(true);
            return ignored;
        }
        let is_load = words.get(1).is_some_and(|word| word == "LOAD");
        let script = words.get(if is_load { 2 } else { 1 });
        let mutated = script.and_then(|script| Some((script, self.mutated(script)?)));
        let answer = match mutated {
            None => server.execute(words, self.now_us(), is_asked, client),
            Some((sent, mutated)) if is_load => server.load_in_place(sent, &mutated),
            Some((_, mutated)) => {
                let words = [&[words[0].clone(), mutated], &words[2..]].concat();
                server.execute(&words, self.now_us(), is_asked, client)
            }
        };
        self.note(|| {
            let words: Vec<&str> = words
                .iter()
                .map(|word| word.lines().next().unwrap_or_default())
                .collect();
            format!("{}: {} -> {answer:?}", server.host, words.join(" "))
        });
        answer
    }

    /// Returns the number of a new client.
    #[must_use]
    pub fn next_client(&self) -> u64 {
        self.clients.set(self.clients.get() + 1);
        self.clients.get()
    }

    /// Returns the true time, which the servers have, in Unix microseconds.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        BEGIN_MS * 1000 + u64::try_from(self.executor.now().as_micros()).unwrap_or_default()
    }

    /// Sends a message, and returns its answer.
    ///
    /// `what` runs when the message arrives, after its latency and after the earlier messages on
    /// the line.
    pub async fn message<T: 'static>(self: &Rc<Self>, line: &Line, what: impl FnOnce() -> Option<T> + 'static) -> T {
        self.within(self.latency_us.get(), line, what).await
    }

    /// Sends a message of a process that pauses while `gate` is closed.
    ///
    /// Returns `None` if there is no answer within `timeout`.
    pub async fn ask<T: 'static>(
        self: &Rc<Self>,
        gate: &Gate,
        line: &Line,
        timeout: Duration,
        what: impl FnOnce() -> Option<T> + 'static,
    ) -> Option<T> {
        gate.pass().await;
        let answered = before(&self.alarm(timeout), self.message(line, what)).await;
        gate.pass().await;
        answered
    }

    /// Runs an operation on a disk, after the earlier operations on the line.
    pub async fn on_disk<T: 'static>(self: &Rc<Self>, line: &Line, what: impl FnOnce() -> Option<T> + 'static) -> T {
        self.within(LATENCY_US, line, what).await
    }

    async fn within<T: 'static>(
        self: &Rc<Self>,
        most_us: u64,
        line: &Line,
        what: impl FnOnce() -> Option<T> + 'static,
    ) -> T {
        let latency = move |executor: &Executor| Duration::from_micros(1 + executor.below(most_us));
        let (signal, slot) = (Signal::default(), Rc::new(RefCell::new(None)));
        let executor = self.executor.clone();
        let (arrived, outcome) = (signal.clone(), slot.clone());
        let back = line.back.clone();
        let there = line.there.after(executor.now(), latency(&executor));
        let inner = executor.clone();
        executor.after(there, move || {
            let Some(done) = what() else {
                return;
            };
            let time = back.after(inner.now(), latency(&inner));
            inner.after(time, move || {
                outcome.replace(Some(done));
                arrived.set();
            });
        });
        signal.wait().await;
        let outcome = slot.take();
        match outcome {
            Some(outcome) => outcome,
            None => future::pending().await,
        }
    }

    /// Returns a signal that is set after a time.
    #[must_use]
    pub fn alarm(&self, time: Duration) -> Signal {
        let signal = Signal::default();
        let over = signal.clone();
        self.executor.after(time, move || over.set());
        signal
    }
}

/// A line that keeps the order of messages, in both directions.
#[derive(Clone, Default)]
pub struct Line {
    there: Way,
    back: Way,
}

#[derive(Clone, Default)]
struct Way(Rc<Cell<Duration>>);

impl Way {
    /// Returns how long a message takes from now on, behind the earlier messages.
    fn after(&self, now: Duration, latency: Duration) -> Duration {
        let at = self.0.get().max(now + latency);
        self.0.set(at);
        at - now
    }
}

/// Does the work, or drops it and returns `None` if `over` is set before.
pub async fn before<T>(over: &Signal, work: impl Future<Output = T>) -> Option<T> {
    match future::select(pin!(work), pin!(over.wait())).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(_) => None,
    }
}
