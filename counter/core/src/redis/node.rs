//! One node: a Redis server, or one of a cluster's. One connection, kept by the instance and shared by its requests.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use verve_protocol::RedisUrl;

use super::scripts::Script;
use crate::answer::Answer;
use crate::circuit::{Circuit, OPEN_MS, Passage};
use crate::cluster::Address;
use crate::config::Config;
use crate::counted::Place;
use crate::once::Once;
use crate::ports::{Connection as _, Host, Limit as _};
use crate::queue::Queue;
use crate::redis_error::RedisError;
use crate::reply::Reply;

/// For how long after its last answer a server is believed to have what it has acknowledged, in milliseconds. Then it is asked again, since it may have
/// been restarted without its data, which shows when its connection is used.
const BELIEVED_MS: u64 = 1000;

/// One Redis server.
pub struct Node<H: Host> {
    host: H,
    /// Where it is, first as the cluster prefers it; never empty.
    urls: Vec<RedisUrl>,
    /// The same, as it was told.
    addresses: Vec<Address>,
    /// Which of them is tried next, or was connected to.
    at: Cell<usize>,
    /// For one attempt, connecting included.
    timeout: Duration,
    limit: H::Limit,
    connection: Once<Rc<H::Connection>, RedisError>,
    /// Ids that wait to be recorded here.
    pub queue: Rc<Queue<H, Place, Answer>>,
    /// Open while the node is away.
    pub circuit: Circuit,
    /// Until when other instances know that it is away, by the monotonic clock in milliseconds; 0 if they do not.
    pub told_away: Cell<u64>,
    /// When it last answered, by the same clock.
    answered_ms: Cell<u64>,
    /// Whether it was connected to before.
    was_connected: Cell<bool>,
    /// How often this and the other nodes were connected to again.
    reconnects: Rc<Cell<u64>>,
    /// Why it last failed.
    last_error: RefCell<Option<Box<RedisError>>>,
}

/// How a command is sent.
pub struct Via<'a, H: Host> {
    connection: &'a H::Connection,
    /// Whether the node has to be asked for each: the slot is on its way to it.
    pub asking: bool,
    /// Whether it was sent before, and may have been done.
    pub is_again: bool,
}

impl<H: Host> Via<'_, H> {
    /// Runs any command.
    pub async fn execute(
        &self,
        command: &str,
        arguments: impl IntoIterator<Item = String>,
    ) -> Result<Vec<Reply>, RedisError> {
        if self.asking {
            self.connection.execute("ASKING", []).await?;
        }
        self.connection.execute(command, arguments).await
    }

    /// Runs a script.
    pub async fn run(&self, script: &Script) -> Result<Vec<Reply>, RedisError> {
        self.execute("EVAL", script.words()).await
    }
}

impl<H: Host> Node<H> {
    /// The node at `urls`, whichever of them leads to it; never empty. They are those of `addresses`. Connects when first used. What counts
    /// `reconnects` is shared with the other nodes.
    pub fn new(
        host: &H,
        urls: Vec<RedisUrl>,
        addresses: &[Address],
        config: &Config,
        reconnects: Rc<Cell<u64>>,
    ) -> Self {
        Self {
            host: host.clone(),
            urls,
            addresses: addresses.to_vec(),
            at: Cell::new(0),
            timeout: config.redis_timeout,
            limit: host.limit(config.redis_timeout),
            connection: Once::default(),
            queue: Queue::new(host.clone()),
            circuit: Circuit::default(),
            told_away: Cell::new(0),
            answered_ms: Cell::new(0),
            was_connected: Cell::new(false),
            reconnects,
            last_error: RefCell::default(),
        }
    }

    /// Where it is, as far as is known.
    pub fn url(&self) -> &RedisUrl {
        &self.urls[self.at.get()]
    }

    /// Its addresses, first as the cluster prefers it.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Its name among instances of the component: its first URL without password.
    pub fn name(&self) -> String {
        self.urls[0].to_string()
    }

    /// Whether it has answered a moment ago.
    pub fn answered_lately(&self) -> bool {
        self.host.monotonic_ms() < self.answered_ms.get() + BELIEVED_MS
    }

    /// How long a trial of a node that was away takes at most, in milliseconds: two attempts, and the circuit's time.
    pub fn trial_ms(&self) -> u64 {
        2 * self.timeout.as_millis() as u64 + OPEN_MS
    }

    /// Whether the node was away for long enough to be asked again. Says so to one who asks; who does has to call
    /// [`Node::is_back`].
    pub fn is_due(&self) -> bool {
        self.circuit.is_open() && self.circuit.enter(|| self.host.monotonic_ms(), self.trial_ms()) == Passage::Trial
    }

    /// Asks the node whether it is back.
    pub async fn is_back(&self) -> bool {
        // Not `PING`: a user of few rights may do what recording takes, and no more.
        let nothing = async |via: &Via<'_, H>| via.execute("EVAL", ["return 1", "0"].map(str::to_owned)).await;
        match self.once(Passage::Trial, &Cell::default(), nothing).await {
            Err(error) if !error.is_elsewhere() => {
                self.failed(&error);
                false
            }
            Ok(_) | Err(_) => {
                self.circuit.close();
                true
            }
        }
    }

    /// Runs an idempotent command, again on a fresh connection if it fails. `sent` says whether it was sent before, somewhere.
    pub async fn twice<T>(
        &self,
        sent: &Cell<bool>,
        command: impl AsyncFn(&Via<'_, H>) -> Result<T, RedisError>,
    ) -> Result<T, RedisError> {
        self.guarded(async |passage| {
            let first = match self.once(passage, sent, &command).await {
                Err(first) if !first.is_elsewhere() => first,
                done => return done,
            };
            if passage == Passage::Free && self.circuit.is_open() {
                // Another request has found out meanwhile.
                return Err(first);
            }
            match self.once(passage, sent, &command).await {
                Err(second) if !second.is_elsewhere() => Err(first.and_then(second)),
                done => done,
            }
        })
        .await
    }

    /// Runs a command once, whatever has failed here before.
    pub async fn attempt<T>(
        &self,
        sent: &Cell<bool>,
        command: impl AsyncFn(&Via<'_, H>) -> Result<T, RedisError>,
    ) -> Result<T, RedisError> {
        self.once(Passage::Free, sent, command).await
    }

    /// Runs a command that another node says this one may run already. What says so to a node holds for the next command of the
    /// connection alone, so it is one that nobody shares.
    pub async fn asking<T>(
        &self,
        sent: &Cell<bool>,
        command: impl AsyncFn(&Via<'_, H>) -> Result<T, RedisError>,
    ) -> Result<T, RedisError> {
        let attempt = async {
            let connection = self.open().await?;
            let via = Via {
                connection: &*connection,
                asking: true,
                is_again: sent.replace(true),
            };
            command(&via).await
        };
        let answer = self.limit.within(attempt).await;
        let answer = answer.unwrap_or_else(|| Err(self.no_answer()));
        answer.map_err(|error| error.at(self.url()))
    }

    /// Does what the circuit lets through, and tells it how that went.
    async fn guarded<T>(&self, work: impl AsyncFnOnce(Passage) -> Result<T, RedisError>) -> Result<T, RedisError> {
        let passage = self.circuit.enter(|| self.host.monotonic_ms(), self.trial_ms());
        if passage == Passage::Barred {
            return Err(match &*self.last_error.borrow() {
                // Another instance has found out.
                None => RedisError::FailedLately(None).at(self.url()),
                last => RedisError::FailedLately(last.clone()),
            });
        }
        let result = work(passage).await;
        match &result {
            Err(error) if !error.is_elsewhere() => {
                self.failed(error);
                // Those who wait for it would find out no better.
                self.limit.end_all();
            }
            Ok(_) | Err(_) => drop(self.circuit.close()),
        }
        result
    }

    fn failed(&self, error: &RedisError) {
        self.last_error.replace(Some(Box::new(error.clone())));
        self.circuit.open(self.host.monotonic_ms() + OPEN_MS);
    }

    /// Runs a command within the timeout. A connection that failed, or was too slow, is given up.
    async fn once<T>(
        &self,
        passage: Passage,
        sent: &Cell<bool>,
        command: impl AsyncFn(&Via<'_, H>) -> Result<T, RedisError>,
    ) -> Result<T, RedisError> {
        let used = Cell::new(None);
        let attempt = async {
            let connection = self.connected().await?;
            used.set(Some(connection.clone()));
            let via = Via {
                connection: &*connection,
                asking: false,
                is_again: sent.get(),
            };
            command(&via).await
        };
        let result = match self.limit.within(attempt).await {
            Some(result) => result,
            None if passage == Passage::Free && self.circuit.is_open() => Err(RedisError::FailedMeanwhile),
            None => Err(self.no_answer()),
        };
        if result.is_ok() {
            self.answered_ms.set(self.host.monotonic_ms());
        }
        result.map_err(|error| {
            if error.is_elsewhere() {
                return error;
            }
            if let Some(used) = used.take() {
                sent.set(true);
                self.connection.clear_if(|kept| Rc::ptr_eq(kept, &used));
            }
            error.at(self.url())
        })
    }

    fn no_answer(&self) -> RedisError {
        RedisError::NoAnswer {
            within_ms: self.timeout.as_millis() as u64,
        }
    }

    /// The connection that the instance keeps.
    async fn connected(&self) -> Result<Rc<H::Connection>, RedisError> {
        self.connection.get_on(&self.host, async || self.connect().await).await
    }

    /// Opens it.
    async fn connect(&self) -> Result<Rc<H::Connection>, RedisError> {
        let connection = self.open().await?;
        if self.was_connected.replace(true) {
            self.reconnects.set(self.reconnects.get() + 1);
        }
        Ok(connection)
    }

    /// Connects to the first of its addresses that leads there.
    async fn open(&self) -> Result<Rc<H::Connection>, RedisError> {
        let mut errors = Vec::new();
        for _ in &self.urls {
            let at = self.at.get();
            // One where nothing answers is given up with this attempt: then the next begins with another one.
            self.at.set((at + 1) % self.urls.len());
            match self.host.connect(self.urls[at].secret()).await {
                Ok(connection) => {
                    self.at.set(at);
                    return Ok(Rc::new(connection));
                }
                Err(error) => errors.push(error),
            }
        }
        Err(RedisError::each(errors))
    }
}
