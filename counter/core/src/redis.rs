//! Recording in Redis: a server, or a cluster whose nodes describe each other.

mod ids;
mod node;
mod record;
mod scripts;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::iter;
use std::rc::Rc;

use futures::future;
use verve_protocol::keys::{INDEX_SECONDS, MAX_QUEUED_JOBS, indexed};
use verve_protocol::slot::slot;
use verve_protocol::spool_state::SPOOL_STATE_SECONDS;
use verve_protocol::{CallbackJob, Id, Keys, RedisUrl, RedisUrls, SpoolState, Window, WindowLengths};

use crate::answer::Limit;
use crate::cluster::{Address, Map};
use crate::config::{Config, Policy};
use crate::ports::Host;
use crate::redis_error::{RedisError, Refusal};
use crate::registered::no_more_counters;
use crate::reply::Reply;
use crate::single_flight::SingleFlight;
use crate::spooled::Batch;
pub use ids::{OfSet, OfSets};
pub use node::Node;
use node::Via;
use scripts::{Script, add_job_within, keep, register_counter, run_once};

/// How often a command follows a redirection before it is given up.
const REDIRECTIONS: usize = 5;
/// The minimum time between reads of the map after failures, in milliseconds.
const MAP_AGAIN_MS: u64 = 500;
/// The number of slots whose nodes are remembered.
const MOST_SERVED: usize = 1024;

/// Redis: one server, or a cluster.
pub struct Redis<H: Host> {
    host: H,
    config: Config,
    /// All nodes that were used so far, first those that the variable names.
    nodes: RefCell<Vec<Rc<Node<H>>>>,
    /// Which node has which slots; without content for a single server.
    map: SingleFlight<Rc<Topology>, RedisError>,
    /// Whether the map is assumed, not read, until a node redirects.
    ///
    /// Otherwise an instance that serves one request would read it for each request.
    guesses: Cell<bool>,
    /// How often a server may have been replaced.
    changes: Rc<Cell<u64>>,
    /// The node that last ran a command for each slot of a cluster.
    served: RefCell<BTreeMap<u16, Rc<Node<H>>>>,
}

/// The answer of a node about its cluster.
enum Asked {
    /// It is a single server.
    One,
    /// The user has no permission to ask.
    Nobody,
    Cluster(Vec<Reply>),
}

/// The servers, and their slots.
enum Topology {
    /// A single server.
    One,
    /// A cluster, and when its map was read, by the monotonic clock.
    Cluster {
        map: RefCell<Map>,
        asked_ms: u64,
        outdated: Cell<bool>,
    },
}

impl<H: Host> Redis<H> {
    /// Returns the Redis that the variables name; connects at the first use.
    pub fn new(host: &H, config: &Config) -> Self {
        let changes = Rc::default();
        let named = config.redis_urls.as_slice().iter();
        let named = named.map(|url| {
            let address = Address::new(url.host(), url.port());
            Rc::new(Node::new(
                host,
                vec![url.clone()],
                &[address],
                config,
                Rc::clone(&changes),
            ))
        });
        Self {
            host: host.clone(),
            config: config.clone(),
            nodes: RefCell::new(named.collect()),
            map: SingleFlight::default(),
            guesses: Cell::new(H::POLICY == Policy::PerRequest),
            changes,
            served: RefCell::default(),
        }
    }

    /// Returns how often a server may have been replaced.
    ///
    /// A lost connection was reopened, or another node served a slot. What was known of the server
    /// before is then no longer valid: it may have restarted without its data, or a replica that
    /// lacks the last writes may have taken over.
    pub fn changes(&self) -> u64 {
        self.changes.get()
    }

    /// Records that a node of a cluster has run a command for a slot.
    ///
    /// It is a change if the last command for this slot ran on another node.
    fn note_served(&self, slot: u16, node: &Rc<Node<H>>) {
        let mut served = self.served.borrow_mut();
        // Windows end, and their slots are no longer used.
        if served.len() >= MOST_SERVED {
            served.clear();
        }
        let last = served.insert(slot, node.clone());
        if last.is_some_and(|last| !Rc::ptr_eq(&last, node)) {
            self.changes.set(self.changes.get() + 1);
        }
    }

    /// Returns the node that has a key, as far as is known now.
    ///
    /// `key` is called only if there are several nodes.
    pub fn node_of<K: AsRef<str>>(&self, key: impl FnOnce() -> K) -> Rc<Node<H>> {
        match self.map.made() {
            Some(topology) if topology.is_cluster() => self.node_in(&topology, slot(key().as_ref())),
            _ => self.first(),
        }
    }

    fn node_in(&self, topology: &Topology, slot: u16) -> Rc<Node<H>> {
        let first = self.first();
        let Topology::Cluster { map, .. } = topology else {
            return first;
        };
        let map = map.borrow();
        let node = map.node(slot).and_then(|addresses| self.node_at(&first, addresses));
        node.unwrap_or(first)
    }

    /// Returns the node with this name, which is a name in the spool.
    ///
    /// The variable must name the node, or the cluster's map must have it. Any other node belongs
    /// to a Redis that this host was configured for before: it is neither read nor written.
    pub async fn named(&self, name: &str) -> Option<Rc<Node<H>>> {
        let urls: RedisUrls = name.parse().ok()?;
        let address = Address::new(urls.first().host(), urls.first().port());
        if let Some(known) = self.known(&address) {
            return Some(known);
        }
        match &*self.topology().await.ok()? {
            Topology::Cluster { map, .. } => self.node_at(&self.first(), map.borrow().at(&address)?),
            Topology::One => None,
        }
    }

    fn first(&self) -> Rc<Node<H>> {
        self.nodes.borrow()[0].clone()
    }

    /// Returns the existing node with this first address.
    fn known(&self, first: &Address) -> Option<Rc<Node<H>>> {
        let nodes = self.nodes.borrow();
        let known = nodes.iter().find(|node| node.addresses().first() == Some(first));
        known.cloned()
    }

    /// Returns the node at these addresses, with the user and password of `asked`.
    ///
    /// A known node with the same first address but other addresses is replaced by a new one: an
    /// address may now lead to another server.
    fn node_at(&self, asked: &Node<H>, addresses: &[Address]) -> Option<Rc<Node<H>>> {
        let first = addresses.first()?;
        // This runs for each command, so it parses nothing that it need not.
        let known = self.known(first);
        if known.as_ref().is_some_and(|known| known.addresses() == addresses) {
            return known;
        }
        let urls = addresses
            .iter()
            .filter_map(|address| asked.url().of_node(&address.host, address.port));
        let urls: Vec<RedisUrl> = urls.collect();
        if urls.is_empty() {
            return None;
        }
        let changes = Rc::clone(&self.changes);
        let node = Rc::new(Node::new(&self.host, urls, addresses, &self.config, changes));
        let mut nodes = self.nodes.borrow_mut();
        let position = known.and_then(|known| nodes.iter().position(|other| Rc::ptr_eq(other, &known)));
        match position {
            Some(position) => nodes[position] = node.clone(),
            None => nodes.push(node.clone()),
        }
        Some(node)
    }

    /// Returns which node has which slots. Reads it if it is unknown or outdated.
    async fn topology(&self) -> Result<Rc<Topology>, RedisError> {
        let is_outdated = |topology: &Rc<Topology>| topology.must_be_read_again(|| self.host.monotonic_ms());
        self.map.clear_if(is_outdated);
        self.map
            .get_on(&self.host, async || Box::pin(self.read_map()).await)
            .await
    }

    /// Reads the cluster's map from the node that most probably answers.
    ///
    /// If that node fails, it asks all others in parallel, because requests wait.
    async fn read_map(&self) -> Result<Rc<Topology>, RedisError> {
        if self.guesses.get() {
            return Ok(self.cluster(Map::default()));
        }
        let mut nodes = self.nodes.borrow().clone();
        nodes.sort_by_key(|node| node.circuit.is_open());
        let [first, others @ ..] = nodes.as_slice() else {
            return Err(RedisError::InvalidAddress);
        };
        let error = match self.ask_for_map(first).await {
            Ok(topology) => return Ok(topology),
            Err(error) if others.is_empty() => return Err(error),
            Err(error) => error,
        };
        let asked = others.iter().map(|node| Box::pin(self.ask_for_map(node)));
        let found = future::select_ok(asked).await;
        found
            .map(|(topology, _)| topology)
            .map_err(|last| RedisError::each(vec![error, last]))
    }

    async fn ask_for_map(&self, node: &Node<H>) -> Result<Rc<Topology>, RedisError> {
        let ask = async |via: &Via<'_, H>| match via.execute("CLUSTER", [text("SLOTS")]).await {
            Ok(answer) => Ok(Asked::Cluster(answer)),
            Err(error) => match error.refusal() {
                Some(Refusal::NoCluster) => Ok(Asked::One),
                Some(Refusal::Forbidden) => Ok(Asked::Nobody),
                _ => Err(error),
            },
        };
        match node.with_retry(&Cell::default(), ask).await {
            Ok(Asked::One) => self.one(),
            // If there are several nodes, each of them redirects.
            Ok(Asked::Nobody) => Ok(self.cluster(Map::default())),
            Ok(Asked::Cluster(answer)) => Ok(self.cluster(Map::parse(&answer, node.url().host()))),
            Err(error) if error.redirect().is_some() => Err(RedisError::UnexpectedType.at(node.url())),
            Err(error) => Err(error),
        }
    }

    fn cluster(&self, map: Map) -> Rc<Topology> {
        Rc::new(Topology::Cluster {
            map: RefCell::new(map),
            asked_ms: self.host.monotonic_ms(),
            outdated: Cell::new(false),
        })
    }

    fn one(&self) -> Result<Rc<Topology>, RedisError> {
        match self.config.redis_urls.as_slice() {
            [_] => Ok(Rc::new(Topology::One)),
            _ => Err(RedisError::NotOneCluster),
        }
    }

    /// Runs an idempotent command on the node that has the key.
    ///
    /// If it fails, it runs again on a fresh connection. Redirections are followed.
    async fn with_retry<T>(
        &self,
        key: &str,
        command: impl AsyncFn(&Via<'_, H>) -> Result<T, RedisError>,
    ) -> Result<T, RedisError> {
        let (slot, sent) = (slot(key), Cell::new(false));
        let topology = self.topology().await?;
        let node = self.node_in(&topology, slot);
        let first = match self.follow(slot, topology, node, &sent, &command).await {
            // The second attempt begins at another named node, which may be reachable if the first
            // is not.
            Err(first) if H::POLICY == Policy::PerRequest && !first.is_elsewhere() => first,
            done => return done,
        };
        let named = self.config.redis_urls.as_slice().len();
        let node = self.nodes.borrow()[1 % named].clone();
        let topology = self.topology().await?;
        let second = self.follow(slot, topology, node, &sent, &command).await;
        second.map_err(|second| first.and_then(second))
    }

    /// Runs a command on a node, and follows redirections.
    async fn follow<T>(
        &self,
        slot: u16,
        mut topology: Rc<Topology>,
        mut node: Rc<Node<H>>,
        sent: &Cell<bool>,
        command: &impl AsyncFn(&Via<'_, H>) -> Result<T, RedisError>,
    ) -> Result<T, RedisError> {
        let mut is_ask = false;
        for _ in 0..=REDIRECTIONS {
            // Boxed, because the types of the callers are otherwise too deep for the compiler in
            // dependent crates.
            let done = match H::POLICY {
                _ if is_ask => Box::pin(node.asking(sent, command)).await,
                Policy::LongLived => Box::pin(node.with_retry(sent, command)).await,
                Policy::PerRequest => Box::pin(node.attempt(sent, command)).await,
            };
            let error = match done {
                Ok(done) => {
                    // A node that was only asked does not have the slot yet.
                    if topology.is_cluster() && !is_ask {
                        self.note_served(slot, &node);
                    }
                    return Ok(done);
                }
                Err(error) => error,
            };
            let Some(redirect) = error.redirect() else {
                topology.set_outdated();
                return Err(error);
            };
            if let Some(known) = self.guess_no_more(&node).await {
                topology = known;
            }
            is_ask = redirect.is_ask;
            let address = redirect.to(node.url().host());
            let to = address.and_then(|address| Some((self.sent_on(&topology, &node, &address)?, address)));
            node = match to {
                Some((to, address)) => {
                    if !is_ask {
                        topology.moved(slot, address);
                    }
                    to
                }
                // The map may know the node.
                None => {
                    topology.set_outdated();
                    topology = self.topology().await?;
                    let current = self.node_in(&topology, slot);
                    if Rc::ptr_eq(&current, &node) {
                        return Err(RedisError::SentNowhere.at(node.url()));
                    }
                    current
                }
            };
        }
        Err(RedisError::SentOn(REDIRECTIONS).at(node.url()))
    }

    /// Reads the map from a node that redirected, if the map was only assumed.
    async fn guess_no_more(&self, asked: &Node<H>) -> Option<Rc<Topology>> {
        if !self.guesses.replace(false) {
            return None;
        }
        self.map.clear_if(|_| true);
        let found = self
            .map
            .get_on(&self.host, async || Box::pin(self.ask_for_map(asked)).await);
        found.await.ok()
    }

    /// Returns the node at the address to which `node` redirects.
    fn sent_on(&self, topology: &Topology, node: &Node<H>, address: &Address) -> Option<Rc<Node<H>>> {
        if let Topology::Cluster { map, .. } = topology
            && let Some(addresses) = map.borrow().at(address)
        {
            return self.node_at(node, addresses);
        }
        self.node_at(node, std::slice::from_ref(address))
    }

    /// Registers that a counter is in use, if it has a name.
    ///
    /// This comes before its ids are recorded. Returns a limit if there are `counter_limit`
    /// already, unless `unlimited`.
    pub async fn register_counter(
        &self,
        keys: &Keys,
        lengths: &WindowLengths,
        unlimited: bool,
    ) -> Result<Option<Limit>, RedisError> {
        let Some(name) = keys.counter() else {
            return Ok(None);
        };
        let script = register_counter(keys, name, lengths, (!unlimited).then_some(self.config.counter_limit));
        let answer = self.evaluate(script, None).await?;
        Ok(match answer.as_slice() {
            [Reply::Text(status)] => no_more_counters(status),
            _ => None,
        })
    }

    /// Adds a window, which has ids in this many partitions, to the index.
    ///
    /// By the index, the reporter finds windows that it does not expect.
    pub async fn index(&self, keys: &Keys, window: Window, partitions: u16) -> Result<(), RedisError> {
        let (key, score) = (keys.windows(window.length()), self.host.now_ms().to_string());
        let member = indexed(window, partitions);
        self.with_retry(&key, async |via| {
            via.execute("ZADD", [&key, &score, &member].map(text)).await?;
            let expiry = [text(&key), INDEX_SECONDS.to_string()];
            via.execute("EXPIRE", expiry).await?;
            self.replicated(via, None).await
        })
        .await
    }

    /// Records spooled ids of one set, by its key.
    pub async fn add_spooled(&self, key: &str, ids: &[Id]) -> Result<(), RedisError> {
        let members: Vec<String> = ids.iter().map(ToString::to_string).collect();
        self.with_retry(key, async |via| {
            via.execute("SADD", iter::once(text(key)).chain(members.iter().cloned()))
                .await?;
            self.replicated(via, Some(key)).await
        })
        .await?;
        self.expire(key).await
    }

    /// Adds a callback job by `command`.
    ///
    /// Returns a limit if its endpoint has the maximum number of jobs in the window.
    pub async fn add_job(
        &self,
        keys: &Keys,
        job: &CallbackJob,
        command: &[String],
    ) -> Result<Option<Limit>, RedisError> {
        let Some(limit) = self.config.endpoint_limit else {
            return self.append(command).await.map(|()| None);
        };
        let answer = self.evaluate(add_job_within(keys, job, limit), None).await?;
        Ok(match answer.as_slice() {
            [Reply::Number(0)] => Some(Limit::Endpoint),
            _ => None,
        })
    }

    /// Runs an idempotent script on the node of its key.
    ///
    /// The script must write in any case, or add to the set of ids under `ids`.
    async fn evaluate(&self, script: Script, ids: Option<&str>) -> Result<Vec<Reply>, RedisError> {
        self.with_retry(script.key(), async |via| {
            let answer = via.run(&script).await?;
            self.replicated(via, ids).await?;
            Ok(answer)
        })
        .await
    }

    /// Runs a command that appends.
    async fn append(&self, command: &[String]) -> Result<(), RedisError> {
        let [name, arguments @ ..] = command else {
            return Ok(());
        };
        let key = arguments.first().map_or("", String::as_str);
        let arguments: Vec<String> = arguments.iter().map(text).collect();
        self.with_retry(key, async |via| {
            via.execute(name, arguments.clone()).await?;
            self.replicated(via, None).await
        })
        .await
    }

    /// Runs a batch, unless it has already run. Returns whether there was room for it.
    pub async fn run_once(&self, keys: &Keys, batch: &Batch) -> Result<bool, RedisError> {
        let answer = self.evaluate(run_once(keys, batch), None).await?;
        Ok(matches!(answer.as_slice(), [Reply::Number(1)]))
    }

    /// Returns whether there is room for another callback job.
    pub async fn has_room(&self, keys: &Keys) -> Result<bool, RedisError> {
        let stream = keys.callbacks();
        let answer = self
            .with_retry(&stream, async |via| via.execute("XLEN", [text(&stream)]).await)
            .await?;
        Ok(!matches!(answer.as_slice(), [Reply::Number(length)] if length.cast_unsigned() >= MAX_QUEUED_JOBS))
    }

    /// Removes the idempotency key of a batch that has run and is not sent again.
    ///
    /// If this fails, the key expires after a day.
    pub async fn forget(&self, keys: &Keys, batch: &Batch) {
        let own = keys.spooled_batch(&batch.name);
        let _ = self
            .with_retry(&own, async |via| via.execute("DEL", [text(&own)]).await)
            .await;
    }

    /// Reports the state of a spool, for the reporter's metrics.
    pub async fn record_spool_state(&self, keys: &Keys, name: &str, state: SpoolState) -> Result<(), RedisError> {
        let (key, state) = (keys.spools(), state.to_string());
        self.with_retry(&key, async |via| {
            via.execute("HSET", [&key, name, &state].map(text)).await?;
            let expiry = [text(&key), SPOOL_STATE_SECONDS.to_string()];
            via.execute("EXPIRE", expiry).await
        })
        .await
        .map(drop)
    }

    /// Waits until enough replicas have what this connection has written.
    ///
    /// If that was ids for the set under `ids`, they may already have been in the set. Then this
    /// function writes something, because since Redis 7.2 `WAIT` waits only for the connection's
    /// own last write.
    async fn replicated(&self, via: &Via<'_, H>, ids: Option<&str>) -> Result<(), RedisError> {
        if self.config.wait_replicas == 0 {
            return Ok(());
        }
        if let Some(key) = ids
            && !matches!(via.run(&keep(key, true)).await?.as_slice(), [Reply::Number(1)])
        {
            return Err(RedisError::SetGone);
        }
        let (wanted, within) = (self.config.wait_replicas, self.config.replicas_within_ms());
        let wait = [i64::from(wanted), within].map(|number| number.to_string());
        match via.execute("WAIT", wait).await?.as_slice() {
            [Reply::Number(replicas)] if *replicas >= i64::from(wanted) => Ok(()),
            [Reply::Number(replicas)] => Err(RedisError::TooFewReplicas {
                replicas: *replicas,
                wanted,
                within_ms: within,
            }),
            _ => Err(RedisError::UnexpectedType),
        }
    }
}

impl Topology {
    const fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster { .. })
    }

    /// Records that another node has a slot. Other slots may have moved too.
    fn moved(&self, slot: u16, address: Address) {
        if let Self::Cluster { map, .. } = self {
            map.borrow_mut().moved(slot, address);
        }
        self.set_outdated();
    }

    /// Marks the map as outdated.
    ///
    /// A node has failed or no longer has a slot, so another node may have taken over.
    fn set_outdated(&self) {
        if let Self::Cluster { outdated, .. } = self {
            outdated.set(true);
        }
    }

    /// Returns whether the map must be read again.
    ///
    /// `now_ms` is the monotonic clock. It is called only where the time matters.
    fn must_be_read_again(&self, now_ms: impl Fn() -> u64) -> bool {
        match self {
            Self::One => false,
            Self::Cluster { asked_ms, outdated, .. } => outdated.get() && now_ms() > asked_ms + MAP_AGAIN_MS,
        }
    }
}

fn text(value: impl AsRef<str>) -> String {
    value.as_ref().to_owned()
}
