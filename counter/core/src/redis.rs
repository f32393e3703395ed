//! Recording in Redis: a server, or a cluster, whose nodes are found by what they say of each other.

mod ids;
mod node;
mod record;
mod scripts;

use std::cell::{Cell, RefCell};
use std::iter;
use std::rc::Rc;

use futures::future;
use verve_protocol::counter_name::MAX_COUNTERS;
use verve_protocol::keys::{INDEX_SECONDS, MAX_QUEUED_JOBS, indexed};
use verve_protocol::slot::slot;
use verve_protocol::spool_state::SPOOL_STATE_SECONDS;
use verve_protocol::{CallbackJob, CounterName, Id, Keys, RedisUrl, RedisUrls, SpoolState, Window};

use crate::answer::Limit;
use crate::cluster::{Address, Map};
use crate::config::{Config, Policy};
use crate::once::Once;
use crate::ports::Host;
use crate::redis_error::{RedisError, Refusal};
use crate::registered::no_more_counters;
use crate::reply::Reply;
use crate::spooled::Batch;
pub use node::Node;
use node::Via;
use scripts::{Script, add_job_within, keep, run_once, tell_counter};

/// How often a command is sent to another node before it is given up.
const REDIRECTIONS: usize = 5;
/// How often it is asked anew, after failures, which node has what, in milliseconds.
const MAP_ANEW_MS: u64 = 500;

/// Redis: one server, or a cluster.
pub struct Redis<H: Host> {
    host: H,
    config: Config,
    /// All that were asked for so far; first those that the variable names.
    nodes: RefCell<Vec<Rc<Node<H>>>>,
    /// Which node has which slots; nothing is in it where there is one server.
    map: Once<Rc<Topology>, RedisError>,
    /// Whether nobody is asked for that as long as all goes well: an instance that serves one request would ask for each.
    guesses: Cell<bool>,
    /// How often a connection was lost and opened again.
    reconnects: Rc<Cell<u64>>,
}

/// What a node says of its cluster.
enum Asked {
    /// It is by itself.
    One,
    /// It may not be asked.
    Nobody,
    Cluster(Vec<Reply>),
}

/// What there is.
enum Topology {
    /// A server by itself.
    One,
    /// A cluster, and when it was asked for its map, by the monotonic clock.
    Cluster {
        map: RefCell<Map>,
        asked_ms: u64,
        outdated: Cell<bool>,
    },
}

impl<H: Host> Redis<H> {
    /// The Redis that the variables name; connects when first used.
    pub fn new(host: &H, config: &Config) -> Self {
        let reconnects = Rc::default();
        let named = config.redis_urls.as_slice().iter();
        let named = named.map(|url| {
            let address = Address::new(url.host(), url.port());
            Rc::new(Node::new(
                host,
                vec![url.clone()],
                &[address],
                config,
                Rc::clone(&reconnects),
            ))
        });
        Self {
            host: host.clone(),
            config: config.clone(),
            nodes: RefCell::new(named.collect()),
            map: Once::default(),
            guesses: Cell::new(H::POLICY == Policy::Once),
            reconnects,
        }
    }

    /// How often a connection to a server was lost and opened again: what was known of that server before says nothing any more.
    pub fn reconnects(&self) -> u64 {
        self.reconnects.get()
    }

    /// The node that has a key, as far as is known by now. The key is asked for if there are several.
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

    /// The node of this name, which the spool has, if the variable names it or the cluster's map has it. Any other is of a Redis that this host
    /// was configured for before: nothing is asked of it and nothing written to it.
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

    /// The node that is there before all else.
    fn known(&self, first: &Address) -> Option<Rc<Node<H>>> {
        let nodes = self.nodes.borrow();
        let known = nodes.iter().find(|node| node.addresses().first() == Some(first));
        known.cloned()
    }

    /// The node at these addresses, as `asked` sees it. One that had others before is another one: an address may lead elsewhere by now.
    fn node_at(&self, asked: &Node<H>, addresses: &[Address]) -> Option<Rc<Node<H>>> {
        let first = addresses.first()?;
        // Each command asks, so nothing is parsed where it need not be.
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
        let reconnects = Rc::clone(&self.reconnects);
        let node = Rc::new(Node::new(&self.host, urls, addresses, &self.config, reconnects));
        let mut nodes = self.nodes.borrow_mut();
        let place = known.and_then(|known| nodes.iter().position(|other| Rc::ptr_eq(other, &known)));
        match place {
            Some(place) => nodes[place] = node.clone(),
            None => nodes.push(node.clone()),
        }
        Some(node)
    }

    /// Which node has what; asked for where that is not known, or no longer.
    async fn topology(&self) -> Result<Rc<Topology>, RedisError> {
        let is_outdated = |topology: &Rc<Topology>| topology.is_to_be_asked_anew(|| self.host.monotonic_ms());
        self.map.clear_if(is_outdated);
        self.map
            .get_on(&self.host, async || Box::pin(self.read_map()).await)
            .await
    }

    /// Asks for the cluster's map: the node that is likeliest to be there, and if it does not tell, all others at the same time, since
    /// requests wait.
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
        let told = future::select_ok(asked).await;
        told.map(|(topology, _)| topology)
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
        match node.twice(&Cell::default(), ask).await {
            Ok(Asked::One) => self.one(),
            // Whatever node is asked sends on, if it is one of several.
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

    /// Runs an idempotent command on the node that has the key, again on a fresh connection if it fails, and wherever the nodes send it.
    async fn twice<T>(
        &self,
        key: &str,
        command: impl AsyncFn(&Via<'_, H>) -> Result<T, RedisError>,
    ) -> Result<T, RedisError> {
        let (slot, sent) = (slot(key), Cell::new(false));
        let topology = self.topology().await?;
        let node = self.node_in(&topology, slot);
        let first = match self.follow(slot, topology, node, &sent, &command).await {
            // The second attempt begins where another one is named, which may be there if the first is not.
            Err(first) if H::POLICY == Policy::Once && !first.is_elsewhere() => first,
            done => return done,
        };
        let named = self.config.redis_urls.as_slice().len();
        let node = self.nodes.borrow()[1 % named].clone();
        let topology = self.topology().await?;
        let second = self.follow(slot, topology, node, &sent, &command).await;
        second.map_err(|second| first.and_then(second))
    }

    /// Runs a command on a node, and wherever that and others send it.
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
            // Boxed, or the types of those who wait are too deep for the compiler in the crates that count.
            let done = match H::POLICY {
                _ if is_ask => Box::pin(node.asking(sent, command)).await,
                Policy::Kept => Box::pin(node.twice(sent, command)).await,
                Policy::Once => Box::pin(node.attempt(sent, command)).await,
            };
            let error = match done {
                Ok(done) => return Ok(done),
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
                // Perhaps the map says where.
                None => {
                    topology.set_outdated();
                    topology = self.topology().await?;
                    let anew = self.node_in(&topology, slot);
                    if Rc::ptr_eq(&anew, &node) {
                        return Err(RedisError::SentNowhere.at(node.url()));
                    }
                    anew
                }
            };
        }
        Err(RedisError::SentOn(REDIRECTIONS).at(node.url()))
    }

    /// Which node has what, told by one that sends on, if that was only guessed.
    async fn guess_no_more(&self, asked: &Node<H>) -> Option<Rc<Topology>> {
        if !self.guesses.replace(false) {
            return None;
        }
        self.map.clear_if(|_| true);
        let told = self
            .map
            .get_on(&self.host, async || Box::pin(self.ask_for_map(asked)).await);
        told.await.ok()
    }

    /// The node at the address to which `node` sends on.
    fn sent_on(&self, topology: &Topology, node: &Node<H>, address: &Address) -> Option<Rc<Node<H>>> {
        if let Topology::Cluster { map, .. } = topology
            && let Some(addresses) = map.borrow().at(address)
        {
            return self.node_at(node, addresses);
        }
        self.node_at(node, std::slice::from_ref(address))
    }

    /// Registers that a named counter is in use, before its ids are recorded. The outcome is a limit where there may be no more counters, unless
    /// `unlimited`.
    pub async fn tell_counter(
        &self,
        keys: &Keys,
        name: &CounterName,
        unlimited: bool,
    ) -> Result<Option<Limit>, RedisError> {
        let script = tell_counter(keys, name, (!unlimited).then_some(MAX_COUNTERS));
        let answer = self.evaluate(script, None).await?;
        Ok(match answer.as_slice() {
            [Reply::Text(said)] => no_more_counters(said),
            _ => None,
        })
    }

    /// Notes that a window has ids in so many partitions, for the reporter, which finds by that what nobody expects.
    pub async fn index(&self, keys: &Keys, window: Window, partitions: u16) -> Result<(), RedisError> {
        let (key, score) = (keys.windows(window.length()), self.host.now_ms().to_string());
        let member = indexed(window, partitions);
        self.twice(&key, async |via| {
            via.execute("ZADD", [&key, &score, &member].map(text)).await?;
            let expiry = [text(&key), INDEX_SECONDS.to_string()];
            via.execute("EXPIRE", expiry).await?;
            self.replicated(via, None).await
        })
        .await
    }

    /// Records spooled ids of one set, known by its key.
    pub async fn add_spooled(&self, key: &str, ids: &[Id]) -> Result<(), RedisError> {
        let members: Vec<String> = ids.iter().map(ToString::to_string).collect();
        self.twice(key, async |via| {
            via.execute("SADD", iter::once(text(key)).chain(members.iter().cloned()))
                .await?;
            self.replicated(via, Some(key)).await
        })
        .await?;
        self.expire(key).await
    }

    /// Adds a callback job, which `command` adds, unless its endpoint has had enough of them in its window.
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

    /// Runs an idempotent script, where its key is. It writes in any case, or adds to the set of ids under `ids`.
    async fn evaluate(&self, script: Script, ids: Option<&str>) -> Result<Vec<Reply>, RedisError> {
        self.twice(script.key(), async |via| {
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
        self.twice(key, async |via| {
            via.execute(name, arguments.clone()).await?;
            self.replicated(via, None).await
        })
        .await
    }

    /// Runs a batch, unless it ran before. Says whether there was room for it.
    pub async fn run_once(&self, keys: &Keys, batch: &Batch) -> Result<bool, RedisError> {
        let answer = self.evaluate(run_once(keys, batch), None).await?;
        Ok(matches!(answer.as_slice(), [Reply::Number(1)]))
    }

    /// Whether there is room for another callback job.
    pub async fn has_room(&self, keys: &Keys) -> Result<bool, RedisError> {
        let stream = keys.callbacks();
        let answer = self
            .twice(&stream, async |via| via.execute("XLEN", [text(&stream)]).await)
            .await?;
        Ok(!matches!(answer.as_slice(), [Reply::Number(length)] if length.cast_unsigned() >= MAX_QUEUED_JOBS))
    }

    /// Forgets a batch that has run, since nobody sends it again. If this fails, it is forgotten after a day.
    pub async fn forget(&self, keys: &Keys, batch: &Batch) {
        let own = keys.spooled_batch(&batch.name);
        let _ = self
            .twice(&own, async |via| via.execute("DEL", [text(&own)]).await)
            .await;
    }

    /// Tells the state of a spool, for the reporter's metrics.
    pub async fn tell_spool(&self, keys: &Keys, name: &str, state: SpoolState) -> Result<(), RedisError> {
        let (key, state) = (keys.spools(), state.to_string());
        self.twice(&key, async |via| {
            via.execute("HSET", [&key, name, &state].map(text)).await?;
            let expiry = [text(&key), SPOOL_STATE_SECONDS.to_string()];
            via.execute("EXPIRE", expiry).await
        })
        .await
        .map(drop)
    }

    /// Waits until enough replicas have what this connection has written. Where that was ids for the set under `ids`, they may have been there
    /// already: then this writes something, since Redis 7.2 waits for no more than
    /// the connection's own last write.
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

    /// Learns that another node has a slot. The others may have moved too.
    fn moved(&self, slot: u16, address: Address) {
        if let Self::Cluster { map, .. } = self {
            map.borrow_mut().moved(slot, address);
        }
        self.set_outdated();
    }

    /// Notes that a node has failed, or has a slot no more: another one may have taken over.
    fn set_outdated(&self) {
        if let Self::Cluster { outdated, .. } = self {
            outdated.set(true);
        }
    }

    /// By the monotonic clock, which is asked where it matters.
    fn is_to_be_asked_anew(&self, now_ms: impl Fn() -> u64) -> bool {
        match self {
            Self::One => false,
            Self::Cluster { asked_ms, outdated, .. } => outdated.get() && now_ms() > asked_ms + MAP_ANEW_MS,
        }
    }
}

fn text(value: impl AsRef<str>) -> String {
    value.as_ref().to_owned()
}
