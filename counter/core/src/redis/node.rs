//! One node: a single Redis server, or one of a cluster.
//!
//! The instance keeps one connection, and its requests share it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use verve_protocol::RedisUrl;

use super::scripts::Script;
use crate::answer::Answers;
use crate::circuit::{Circuit, CircuitState, OPEN_MS};
use crate::cluster::Address;
use crate::config::Config;
use crate::counter_state::CounterWindow;
use crate::ports::{Connection as _, Host, Limit as _};
use crate::queue::Queue;
use crate::redis_error::RedisError;
use crate::reply::Reply;
use crate::single_flight::SingleFlight;

/// How long after its last answer a server is trusted, in milliseconds.
///
/// Until then it is believed to have what it has acknowledged. After that it is asked again: it may
/// have been restarted without its data, which shows when its connection is used.
const BELIEVED_MS: u64 = 1000;

/// One Redis server.
pub struct Node<H: Host> {
    host: H,
    /// Its URLs, first the one that the cluster prefers; never empty.
    urls: Vec<RedisUrl>,
    /// The same, as addresses in the form in which they were received.
    addresses: Vec<Address>,
    /// The index of the URL that is connected, or is tried next.
    at: Cell<usize>,
    /// The limit of one attempt, including the connection.
    timeout: Duration,
    limit: H::Limit,
    connection: SingleFlight<Rc<H::Connection>, RedisError>,
    /// Ids that wait to be recorded here.
    pub queue: Rc<Queue<H, CounterWindow, Answers>>,
    /// Open while the node is unreachable.
    pub circuit: Circuit,
    /// Until when other instances know that the node is unreachable.
    ///
    /// By the monotonic clock in milliseconds; 0 if they do not know it.
    pub marked_down_until: Cell<u64>,
    /// When it last answered, by the same clock.
    answered_ms: Cell<u64>,
    /// Whether it was connected before.
    was_connected: Cell<bool>,
    /// How often this server or another one may have been replaced.
    changes: Rc<Cell<u64>>,
    /// Why it last failed.
    last_error: RefCell<Option<Box<RedisError>>>,
}

/// How a command is sent.
pub struct Via<'a, H: Host> {
    connection: &'a H::Connection,
    /// Whether each command needs `ASKING`: the slot is migrating to this node.
    pub asking: bool,
    /// Whether the command was sent before, and may have run.
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
    /// Returns the node at `urls`, any of which may lead to it; never empty.
    ///
    /// `addresses` are the addresses of these URLs. It connects at the first use. The counter
    /// `changes` is shared with the other nodes.
    pub fn new(host: &H, urls: Vec<RedisUrl>, addresses: &[Address], config: &Config, changes: Rc<Cell<u64>>) -> Self {
        Self {
            host: host.clone(),
            urls,
            addresses: addresses.to_vec(),
            at: Cell::new(0),
            timeout: config.redis_timeout,
            limit: host.limit(config.redis_timeout),
            connection: SingleFlight::default(),
            queue: Queue::new(host.clone()),
            circuit: Circuit::default(),
            marked_down_until: Cell::new(0),
            answered_ms: Cell::new(0),
            was_connected: Cell::new(false),
            changes,
            last_error: RefCell::default(),
        }
    }

    /// Returns its URL, as far as is known.
    pub fn url(&self) -> &RedisUrl {
        &self.urls[self.at.get()]
    }

    /// Returns its addresses, first the one that the cluster prefers.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Returns its name among the instances of the component.
    ///
    /// This is its first URL, without the password.
    pub fn name(&self) -> String {
        self.urls[0].to_string()
    }

    /// Returns whether it has answered a moment ago.
    pub fn answered_lately(&self) -> bool {
        self.host.monotonic_ms() < self.answered_ms.get() + BELIEVED_MS
    }

    /// Returns how long a probe of an unreachable node takes at most.
    ///
    /// In milliseconds: two attempts, and the time of the circuit.
    pub fn trial_ms(&self) -> u64 {
        2 * self.timeout.as_millis() as u64 + OPEN_MS
    }

    /// Returns whether the node must be probed now.
    ///
    /// Only one caller gets `true`. That caller must call [`Node::is_back`].
    pub fn is_due(&self) -> bool {
        self.circuit.is_open()
            && self.circuit.enter(|| self.host.monotonic_ms(), self.trial_ms()) == CircuitState::HalfOpen
    }

    /// Probes the node. Returns whether it is reachable again.
    pub async fn is_back(&self) -> bool {
        // Not `PING`: a restricted user may have only the permissions that recording needs.
        let nothing = async |via: &Via<'_, H>| via.execute("EVAL", ["return 1", "0"].map(str::to_owned)).await;
        match self.once(CircuitState::HalfOpen, &Cell::default(), nothing).await {
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

    /// Runs an idempotent command, again on a fresh connection if it fails.
    ///
    /// `sent` is whether it was already sent somewhere.
    pub async fn with_retry<T>(
        &self,
        sent: &Cell<bool>,
        command: impl AsyncFn(&Via<'_, H>) -> Result<T, RedisError>,
    ) -> Result<T, RedisError> {
        self.guarded(async |circuit| {
            let first = match self.once(circuit, sent, &command).await {
                Err(first) if !first.is_elsewhere() => first,
                done => return done,
            };
            if circuit == CircuitState::Closed && self.circuit.is_open() {
                // Another request has found the failure meanwhile.
                return Err(first);
            }
            match self.once(circuit, sent, &command).await {
                Err(second) if !second.is_elsewhere() => Err(first.and_then(second)),
                done => done,
            }
        })
        .await
    }

    /// Runs a command once, regardless of earlier failures of this node.
    pub async fn attempt<T>(
        &self,
        sent: &Cell<bool>,
        command: impl AsyncFn(&Via<'_, H>) -> Result<T, RedisError>,
    ) -> Result<T, RedisError> {
        self.once(CircuitState::Closed, sent, command).await
    }

    /// Runs a command that another node redirected here with `ASK`.
    ///
    /// `ASKING` applies only to the next command of the connection, so this connection is not
    /// shared.
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

    /// Runs `work` unless the circuit is open, and updates the circuit with the result.
    async fn guarded<T>(&self, work: impl AsyncFnOnce(CircuitState) -> Result<T, RedisError>) -> Result<T, RedisError> {
        let circuit = self.circuit.enter(|| self.host.monotonic_ms(), self.trial_ms());
        if circuit == CircuitState::Open {
            return Err(match &*self.last_error.borrow() {
                // Another instance has found the failure.
                None => RedisError::FailedLately(None).at(self.url()),
                last => RedisError::FailedLately(last.clone()),
            });
        }
        let result = work(circuit).await;
        match &result {
            Err(error) if !error.is_elsewhere() => {
                self.failed(error);
                // The other requests that wait for this node would fail too.
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

    /// Runs a command within the timeout.
    ///
    /// A connection that failed or was too slow is discarded.
    async fn once<T>(
        &self,
        circuit: CircuitState,
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
            None if circuit == CircuitState::Closed && self.circuit.is_open() => Err(RedisError::FailedMeanwhile),
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

    /// Returns the connection that the instance keeps.
    async fn connected(&self) -> Result<Rc<H::Connection>, RedisError> {
        self.connection.get_on(&self.host, async || self.connect().await).await
    }

    /// Opens the connection to keep, and counts a reconnect as a change.
    async fn connect(&self) -> Result<Rc<H::Connection>, RedisError> {
        let connection = self.open().await?;
        if self.was_connected.replace(true) {
            self.changes.set(self.changes.get() + 1);
        }
        Ok(connection)
    }

    /// Connects to the first of its URLs that works.
    async fn open(&self) -> Result<Rc<H::Connection>, RedisError> {
        let mut errors = Vec::new();
        for _ in &self.urls {
            let at = self.at.get();
            // A URL without an answer ends this attempt by its timeout. The next attempt then
            // begins with another URL.
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
