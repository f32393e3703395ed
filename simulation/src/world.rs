//! All that there is: servers, the time, messages that take some, and what becomes of all that is done.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures::future::{self, Either};

use crate::executor::{Executor, Signal};
use crate::gate::Gate;
use crate::mutation::{Into, Mutation};
use crate::redis::{Answer, Server};

/// How long a message takes at most unless it is said, in microseconds.
const LATENCY_US: u64 = 1000;
/// How much of a word of a command the trace has, in bytes: scripts are longer, and always the same.
const MOST_NOTED: usize = 1000;
/// When the simulated time begins, in Unix milliseconds.
pub const BEGIN_MS: u64 = 1_800_000_000_000;

/// What becomes of all that is done, as a number: the same each time that a seed is run.
#[derive(Debug)]
struct Trace(Cell<u64>);

impl Trace {
    /// By the FNV-1a hash.
    fn note(&self, bytes: &[u8]) {
        let hash = bytes.iter().fold(self.0.get(), |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        self.0.set(hash);
    }
}

/// All that there is.
pub struct World {
    /// What runs it.
    pub executor: Rc<Executor>,
    /// The Redis servers.
    pub servers: Vec<Rc<Server>>,
    trace: Trace,
    /// How long a message takes at most, in microseconds.
    pub latency_us: Cell<u64>,
    /// What was done, in words, if that is wanted.
    story: Option<RefCell<Vec<String>>>,
    /// A fault that is put in.
    mutation: Option<&'static Mutation>,
    /// Whether it was there that something was done.
    pub is_met: Cell<bool>,
    /// How many clients there were.
    clients: Cell<u64>,
}

impl World {
    /// One with these servers.
    #[must_use]
    pub fn new(seed: u64, servers: Vec<Rc<Server>>) -> Rc<Self> {
        Self::with(seed, servers, false, None)
    }

    /// One that remembers what is done, in words, if that is wanted, and has a fault put in, if one is.
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

    /// A script or a statement, with the fault in it that is put in there, if one is.
    #[must_use]
    pub fn mutated(&self, text: &str) -> Option<String> {
        let mutated = self.mutation.and_then(|mutation| mutation.apply(text));
        if mutated.is_some() {
            self.is_met.set(true);
        }
        mutated
    }

    /// Whether this fault is put in. Then something was done there.
    #[must_use]
    pub fn has(&self, is_it: impl FnOnce(&Into) -> bool) -> bool {
        let has = self.mutation.is_some_and(|mutation| is_it(&mutation.into));
        self.is_met.set(self.is_met.get() || has);
        has
    }

    /// What has become of all that was done so far, as a number.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.trace.0.get()
    }

    /// What was done, in words.
    #[must_use]
    pub fn story(&self) -> Vec<String> {
        self.story.iter().flat_map(|story| story.borrow().clone()).collect()
    }

    /// Notes something that is done.
    pub fn note(&self, what: impl FnOnce() -> String) {
        if let Some(story) = &self.story {
            let now = self.executor.now().as_secs_f64();
            story.borrow_mut().push(format!("{now:9.3} {}", what()));
        }
    }

    /// Has a server do what a client asks it for.
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

    /// The number of another client.
    #[must_use]
    pub fn next_client(&self) -> u64 {
        self.clients.set(self.clients.get() + 1);
        self.clients.get()
    }

    /// The true time, which servers have, in Unix microseconds.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        BEGIN_MS * 1000 + u64::try_from(self.executor.now().as_micros()).unwrap_or_default()
    }

    /// What happens after the time that a message takes, behind what was sent there before.
    pub async fn message<T: 'static>(self: &Rc<Self>, line: &Line, what: impl FnOnce() -> Option<T> + 'static) -> T {
        self.within(self.latency_us.get(), line, what).await
    }

    /// The same for a process that this gate lets go on; nothing if there is no answer within the time.
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

    /// What happens on a disk, behind what happens there before.
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
        let (arrived, told) = (signal.clone(), slot.clone());
        let back = line.back.clone();
        let there = line.there.after(executor.now(), latency(&executor));
        let inner = executor.clone();
        executor.after(there, move || {
            let Some(done) = what() else {
                return;
            };
            let time = back.after(inner.now(), latency(&inner));
            inner.after(time, move || {
                told.replace(Some(done));
                arrived.set();
            });
        });
        signal.wait().await;
        let told = slot.take();
        match told {
            Some(told) => told,
            None => future::pending().await,
        }
    }

    /// What happens after a time.
    #[must_use]
    pub fn alarm(&self, time: Duration) -> Signal {
        let signal = Signal::default();
        let over = signal.clone();
        self.executor.after(time, move || over.set());
        signal
    }
}

/// A way on which messages stay in their order, both ways.
#[derive(Clone, Default)]
pub struct Line {
    there: Way,
    back: Way,
}

#[derive(Clone, Default)]
struct Way(Rc<Cell<Duration>>);

impl Way {
    /// How long from now on a message takes that comes after those before it.
    fn after(&self, now: Duration, latency: Duration) -> Duration {
        let at = self.0.get().max(now + latency);
        self.0.set(at);
        at - now
    }
}

/// Does the work, or gives it up when something happens before.
pub async fn before<T>(over: &Signal, work: impl Future<Output = T>) -> Option<T> {
    match future::select(pin!(work), pin!(over.wait())).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(_) => None,
    }
}
