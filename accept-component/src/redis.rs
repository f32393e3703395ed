//! Recording in Redis: a server, or a cluster, whose nodes are found by what they say of each other.

mod node;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use futures::{StreamExt, TryStreamExt, future, stream};
use spin_sdk::redis::{Error, RedisParameter, RedisResult};
use verve_protocol::keys::{MAX_QUEUED_JOBS, UNREPORTED_SECONDS};
use verve_protocol::slot::slot;
use verve_protocol::spool_state::SPOOL_STATE_SECONDS;
use verve_protocol::{CallbackJob, Id, Keys, Partition, RedisUrls, SpoolState, Window};

use crate::answer::{Answer, Limit, Outcome};
use crate::batches::{Batch, Distinct};
use crate::clock::{look_again, now_ms};
use crate::cluster::{Address, Map, Redirect};
use crate::config::Config;
use crate::failures;
use crate::limits::{ADD_JOB_WITHIN, ADD_WITHIN, added, endpoints_seconds};
use crate::once::Once;
pub use node::Node;
use node::{Failure, Via};

/// How often a command is sent to another node before it is given up.
const REDIRECTIONS: usize = 5;
/// How often it is asked anew, after failures, which node has what, in milliseconds.
const MAP_ANEW_MS: u64 = 500;

/// From how many ids on they are added together: the script runs two commands and is one itself, so that it costs Redis no
/// more commands than there are ids.
const TOGETHER_FROM: usize = 3;

/// Adds ids to sets, and answers for each whether it was there before, see [`added`], or -1 if its set is not on this node any more, which
/// is an error if it is the only one.
///
/// KEYS: one of the sets, which brings the script to their node. ARGV: for each set its key, how many ids there are for it, and these, all
/// different.
const ADD_TOGETHER: &str = r"
local run = #ARGV == 2 + ARGV[2] and redis.call or redis.pcall
local known, at = {}, 1
while at < #ARGV do
  local key, first, last = ARGV[at], at + 2, at + 1 + tonumber(ARGV[at + 1])
  local answers = {}
  if last - first < 2 then
    for i = first, last do
      local added = run('SADD', key, ARGV[i])
      answers[i - first + 1] = type(added) == 'number' and 1 - added
    end
  else
    local before = run('SMISMEMBER', key, unpack(ARGV, first, last))
    if not before.err and type(run('SADD', key, unpack(ARGV, first, last))) == 'number' then answers = before end
  end
  for i = 1, last - first + 1 do known[#known + 1] = answers[i] or -1 end
  at = last + 1
end
return known";

/// Runs a batch of commands unless it has run already, and if there is room where it has callback jobs. Answers 1 if the
/// batch has run, now or before. A command that fails is an operator's doing, such as a key of the wrong type: then
/// the whole batch is tried again later.
///
/// KEYS: the batch's own, and the stream of callback jobs if it has any. ARGV: the own key's expiry, the most jobs, the commands.
const RUN_ONCE: &str = r"
if KEYS[2] and redis.call('XLEN', KEYS[2]) >= tonumber(ARGV[2]) then return 0 end
if not redis.call('SET', KEYS[1], 1, 'NX', 'EX', ARGV[1]) then return 1 end
for i = 3, #ARGV do
  local done = redis.pcall(unpack(cjson.decode(ARGV[i])))
  if type(done) == 'table' and done.err then
    redis.call('DEL', KEYS[1])
    return done
  end
end
return 1";

/// Redis: one server, or a cluster.
pub struct Redis {
    config: Config,
    /// All that were asked for so far; first those that the variable names.
    nodes: RefCell<Vec<Rc<Node>>>,
    /// Which node has which slots; nothing is in it where there is one server.
    map: Once<Rc<Topology>, String>,
    /// The last window, by its start, and those of its partitions, whose sets of ids are known to have an expiry.
    expiring: RefCell<(u64, BTreeSet<Partition>)>,
}

/// What a node says of its cluster.
enum Asked {
    /// It is by itself.
    One,
    /// It may not be asked.
    Nobody,
    Cluster(Vec<RedisResult>),
}

/// Ids to be recorded in one set.
struct Set {
    key: String,
    distinct: Distinct,
    /// These of it, each once.
    members: Vec<String>,
}

/// What there is.
enum Topology {
    /// A server by itself.
    One,
    /// A cluster, and when it was asked for its map.
    Cluster {
        map: RefCell<Map>,
        asked_ms: u64,
        outdated: Cell<bool>,
    },
}

impl Redis {
    /// The Redis that the variables name; connects when first used.
    pub fn new(config: &Config) -> Self {
        let named = config.redis_urls.as_slice().iter();
        let named = named.map(|url| Rc::new(Node::new(url.clone(), config)));
        Self {
            config: config.clone(),
            nodes: RefCell::new(named.collect()),
            map: Once::default(),
            expiring: RefCell::default(),
        }
    }

    /// The node that has a key, as far as is known by now. The key is asked for if there are several.
    pub fn node_of(&self, key: impl FnOnce() -> String) -> Rc<Node> {
        match self.map.made() {
            Some(topology) if topology.is_cluster() => self.node_in(&topology, slot(&key())),
            _ => self.first(),
        }
    }

    fn node_in(&self, topology: &Topology, slot: u16) -> Rc<Node> {
        let first = self.first();
        let node = topology.node(slot).and_then(|address| self.node_at(&first, &address));
        node.unwrap_or(first)
    }

    /// The node of this name, of which another instance has told.
    pub fn named(&self, name: &str) -> Option<Rc<Node>> {
        let urls: RedisUrls = name.parse().ok()?;
        let (host, port) = (urls.first().host().to_owned(), urls.first().port());
        self.node_at(&self.first(), &Address { host, port })
    }

    fn first(&self) -> Rc<Node> {
        self.nodes.borrow()[0].clone()
    }

    fn known(&self, host: &str, port: u16) -> Option<Rc<Node>> {
        let nodes = self.nodes.borrow();
        let known = nodes
            .iter()
            .find(|node| (node.url().host(), node.url().port()) == (host, port));
        known.cloned()
    }

    /// The node at this address, as `asked` sees it.
    fn node_at(&self, asked: &Node, address: &Address) -> Option<Rc<Node>> {
        // Each command asks, so nothing is parsed where it need not be.
        if let Some(known) = self.known(&address.host, address.port) {
            return Some(known);
        }
        let url = asked.url().of_node(&address.host, address.port)?;
        Some(self.known(url.host(), url.port()).unwrap_or_else(|| {
            let node = Rc::new(Node::new(url, &self.config));
            self.nodes.borrow_mut().push(node.clone());
            node
        }))
    }

    /// Asks for the cluster's map: the node that is likeliest to be there, and if it does not tell, all others at the same time, since
    /// requests wait.
    async fn read_map(&self) -> Result<Rc<Topology>, String> {
        let mut nodes = self.nodes.borrow().clone();
        nodes.sort_by_key(|node| node.circuit.is_open());
        let [first, others @ ..] = nodes.as_slice() else {
            return Err(failures::INVALID_ADDRESS.to_owned());
        };
        let error = match self.ask_for_map(first).await {
            Ok(topology) => return Ok(topology),
            Err(error) if others.is_empty() => return Err(error),
            Err(error) => error,
        };
        let asked = others.iter().map(|node| Box::pin(self.ask_for_map(node)));
        let told = future::select_ok(asked).await;
        told.map(|(topology, _)| topology).map_err(|last| {
            if last == error {
                last
            } else {
                format!("{error}; {last}")
            }
        })
    }

    async fn ask_for_map(&self, node: &Node) -> Result<Rc<Topology>, String> {
        let ask = async |via: &Via<'_>| match via.execute("CLUSTER", [text("NODES")]).await {
            Err(Error::Other(error)) if is_no_cluster(&error) => Ok(Asked::One),
            Err(Error::Other(error)) if is_forbidden(&error) => Ok(Asked::Nobody),
            answer => answer.map(Asked::Cluster),
        };
        match node.twice(ask).await {
            Ok(Asked::One) => self.one(),
            // Whatever node is asked sends on, if it is one of several.
            Ok(Asked::Nobody) => Ok(Topology::cluster(Map::default())),
            Ok(Asked::Cluster(answer)) => match answer.as_slice() {
                [RedisResult::Binary(nodes)] => Ok(Topology::cluster(Map::parse(&String::from_utf8_lossy(nodes)))),
                _ => Err(format!("{}: {}", node.url(), failures::TYPE_ERROR)),
            },
            Err(Failure::Failed(error)) => Err(error),
            Err(Failure::Redirected(_)) => Err(format!("{}: {}", node.url(), failures::TYPE_ERROR)),
        }
    }

    fn one(&self) -> Result<Rc<Topology>, String> {
        match self.config.redis_urls.as_slice() {
            [_] => Ok(Rc::new(Topology::One)),
            _ => Err(failures::NO_CLUSTER.to_owned()),
        }
    }

    /// Runs an idempotent command on the node that has the key, again on a fresh connection if it fails, and wherever the nodes send it.
    async fn twice<T>(&self, key: &str, command: impl AsyncFn(&Via<'_>) -> Result<T, Error>) -> Result<T, String> {
        let slot = slot(key);
        self.map.clear_if(|topology| topology.is_to_be_asked_anew());
        let topology = self.map.get(async || self.read_map().await, look_again).await?;
        let mut node = self.node_in(&topology, slot);
        for _ in 0..REDIRECTIONS {
            let redirect = match node.twice(&command).await {
                Ok(done) => return Ok(done),
                Err(Failure::Failed(error)) => {
                    topology.set_outdated();
                    return Err(error);
                }
                Err(Failure::Redirected(redirect)) => redirect,
            };
            let (Redirect::Moved(_, address) | Redirect::Ask(address)) = &redirect;
            let Some(to) = self.node_at(&node, address) else {
                return Err(format!("{}: sends on to {address}, which is no address", node.url()));
            };
            if let Redirect::Ask(_) = redirect {
                return to.asking(&command).await;
            }
            topology.moved(slot, address.clone());
            node = to;
        }
        Err(format!("{}: sent on more than {REDIRECTIONS} times", node.url()))
    }

    /// Records ids in the sets of a window. Answers for each set what came of its ids: the first of several equal ones is the new one.
    pub async fn add_ids(
        &self,
        keys: &Keys,
        window: Window,
        sets: &BTreeMap<Partition, Vec<Id>>,
    ) -> Vec<Result<Vec<Answer>, String>> {
        let set = |(partition, ids): (&Partition, &Vec<Id>)| {
            let distinct = Distinct::of(ids);
            Set {
                key: keys.ids(window, *partition),
                members: distinct.members(),
                distinct,
            }
        };
        let of_each: Vec<Set> = sets.iter().map(set).collect();
        let together = self.add_together(&of_each).await;
        let left: Vec<&Set> = of_each.iter().filter(|set| !together.contains_key(&set.key)).collect();
        let mut alone = match left.as_slice() {
            [set] => vec![self.add(set).await],
            sets => future::join_all(sets.iter().map(|set| self.add(set))).await,
        }
        .into_iter();
        let mut answers = Vec::new();
        let mut expiring = Vec::new();
        for (set, partition) in of_each.iter().zip(sets.keys()) {
            let added = match together.get(&set.key) {
                Some(added) => Some(Ok(added.clone())),
                None => alone.next(),
            };
            let added = added.unwrap_or_else(|| Ok(Vec::new())).and_then(|added| {
                let answers = set.distinct.answers(&added);
                answers.ok_or_else(|| format!("{}: the answer has an unexpected length", set.key))
            });
            if added.is_ok() && self.is_first(window, *partition) {
                expiring.push((&set.key, partition));
            }
            answers.push(added);
        }
        if !expiring.is_empty() {
            future::join_all(expiring.into_iter().map(async |(key, partition)| {
                if self.expire(key).await.is_err() {
                    // The ids are recorded all the same; the next ones set the expiry.
                    self.expiring.borrow_mut().1.remove(partition);
                }
            }))
            .await;
        }
        answers
    }

    /// Records ids of several sets of one node by one command, since commands are what costs. Answers what came of those that are recorded.
    async fn add_together(&self, sets: &[Set]) -> BTreeMap<String, Vec<Answer>> {
        let [first, others @ ..] = sets else {
            return BTreeMap::new();
        };
        let node_of = |set: &Set| self.node_of(|| set.key.clone());
        let (node, limited) = (node_of(first), self.config.window_limit.is_some());
        if others.is_empty() || limited || !others.iter().all(|set| Rc::ptr_eq(&node_of(set), &node)) {
            return BTreeMap::new();
        }
        // Without an answer each set is tried by itself, which tells why.
        let Ok(known) = self.evaluate(&first.key, add_together(sets)).await else {
            return BTreeMap::new();
        };
        let mut known = known.iter().map(known_to_be);
        let recorded = sets.iter().filter_map(|set| {
            let answers: Vec<Option<Answer>> = known.by_ref().take(set.members.len()).collect();
            Some((set.key.clone(), answers.into_iter().collect::<Option<_>>()?))
        });
        recorded.collect()
    }

    /// Records the ids of one set.
    async fn add(&self, set: &Set) -> Result<Vec<Answer>, String> {
        let Set { key, members, .. } = set;
        let arguments = match self.config.window_limit {
            None if members.len() < TOGETHER_FROM => {
                return self
                    .twice(key, async |via| {
                        let adds = members.iter().map(async |member| {
                            let new = via.sadd(key, std::slice::from_ref(member)).await? > 0;
                            Ok(Answer::Recorded(if new { Outcome::New } else { Outcome::Duplicate }))
                        });
                        // What a node has to be asked for comes by itself.
                        let at_once = if via.asking { 1 } else { TOGETHER_FROM };
                        let added = stream::iter(adds).buffered(at_once).try_collect().await?;
                        self.replicated(via, added).await
                    })
                    .await;
            }
            None => add_together(std::slice::from_ref(set)),
            Some(limit) => {
                let arguments = [ADD_WITHIN, "1", key, &limit.to_string()].map(text).into_iter();
                arguments.chain(members.iter().map(text)).collect()
            }
        };
        let known = self.evaluate(key, arguments).await?;
        Ok(known.iter().filter_map(known_to_be).collect())
    }

    /// Whether this set of ids is not known to have an expiry. From now on it is.
    fn is_first(&self, window: Window, partition: Partition) -> bool {
        let mut expiring = self.expiring.borrow_mut();
        if expiring.0 != window.start() {
            *expiring = (window.start(), BTreeSet::new());
        }
        expiring.1.insert(partition)
    }

    /// Records spooled ids of one set, known by its key.
    pub async fn add_spooled(&self, key: &str, ids: &[Id]) -> Result<(), String> {
        let members: Vec<String> = ids.iter().map(ToString::to_string).collect();
        self.twice(key, async |via| {
            let added = via.sadd(key, &members).await?;
            self.replicated(via, added).await
        })
        .await?;
        self.expire(key).await
    }

    /// Adds a callback job, which `command` adds, unless its endpoint has had enough of them in its window.
    pub async fn add_job(&self, keys: &Keys, job: &CallbackJob, command: &[String]) -> Result<Option<Limit>, String> {
        let Some(limit) = self.config.endpoint_limit else {
            return self.append(command).await.map(|()| None);
        };
        let (stream, endpoints) = (keys.callbacks(), keys.endpoints(job.window));
        let (limit, expiry) = (limit.to_string(), endpoints_seconds(job.window).to_string());
        let mut arguments = [
            ADD_JOB_WITHIN,
            "2",
            &stream,
            &endpoints,
            &limit,
            &expiry,
            job.endpoint.as_str(),
        ]
        .map(text)
        .to_vec();
        arguments.extend(
            job.to_fields()
                .iter()
                .flat_map(|(field, value)| [text(field), text(value)]),
        );
        let answer = self.evaluate(&stream, arguments).await?;
        Ok(match answer.as_slice() {
            [RedisResult::Int64(0)] => Some(Limit::Endpoint),
            _ => None,
        })
    }

    /// Runs an idempotent script that writes, where the key is.
    async fn evaluate(&self, key: &str, arguments: Vec<RedisParameter>) -> Result<Vec<RedisResult>, String> {
        self.twice(key, async |via| {
            let answer = via.execute("EVAL", arguments.clone()).await?;
            self.replicated(via, answer).await
        })
        .await
    }

    /// Runs a command that appends.
    async fn append(&self, command: &[String]) -> Result<(), String> {
        let [name, arguments @ ..] = command else {
            return Ok(());
        };
        let key = arguments.first().map_or("", String::as_str);
        let arguments: Vec<RedisParameter> = arguments.iter().map(text).collect();
        self.twice(key, async |via| {
            via.execute(name, arguments.clone()).await?;
            self.replicated(via, ()).await
        })
        .await
    }

    /// Runs a batch, unless it ran before. Says whether there was room for it.
    pub async fn run_once(&self, keys: &Keys, batch: &Batch) -> Result<bool, String> {
        let (own, stream) = (keys.spooled_batch(&batch.name), keys.callbacks());
        let (expiry, most) = (UNREPORTED_SECONDS.to_string(), MAX_QUEUED_JOBS.to_string());
        let mut arguments: Vec<RedisParameter> = if batch.has_jobs() {
            [RUN_ONCE, "2", &own, &stream].map(text).into()
        } else {
            [RUN_ONCE, "1", &own].map(text).into()
        };
        arguments.extend([expiry, most].map(text));
        arguments.extend(batch.commands.iter().map(text));
        let answer = self.evaluate(&own, arguments).await?;
        Ok(matches!(answer.as_slice(), [RedisResult::Int64(1)]))
    }

    /// Whether there is room for another callback job.
    pub async fn has_room(&self, keys: &Keys) -> Result<bool, String> {
        let stream = keys.callbacks();
        let answer = self
            .twice(&stream, async |via| via.execute("XLEN", [text(&stream)]).await)
            .await?;
        Ok(!matches!(answer.as_slice(), [RedisResult::Int64(length)] if length.cast_unsigned() >= MAX_QUEUED_JOBS))
    }

    /// Forgets a batch that has run, since nobody sends it again. If this fails, it is forgotten after a day.
    pub async fn forget(&self, keys: &Keys, batch: &Batch) {
        let own = keys.spooled_batch(&batch.name);
        let _ = self
            .twice(&own, async |via| via.execute("DEL", [text(&own)]).await)
            .await;
    }

    /// Tells the state of a spool, for the reporter's metrics.
    pub async fn tell_spool(&self, keys: &Keys, name: &str, state: SpoolState) -> Result<(), String> {
        let (key, state) = (keys.spools(), state.to_string());
        self.twice(&key, async |via| {
            via.execute("HSET", [&key, name, &state].map(text)).await?;
            let expiry = [text(&key), RedisParameter::Int64(SPOOL_STATE_SECONDS.cast_signed())];
            via.execute("EXPIRE", expiry).await
        })
        .await
        .map(drop)
    }

    /// Waits until enough replicas have what this connection has written, which was `done`. Recording it once more changes nothing.
    async fn replicated<T>(&self, via: &Via<'_>, done: T) -> Result<T, Error> {
        if self.config.wait_replicas == 0 {
            return Ok(done);
        }
        let (wanted, within) = (self.config.wait_replicas, self.config.replicas_within_ms());
        let wait = [i64::from(wanted), within].map(RedisParameter::Int64);
        match via.execute("WAIT", wait).await?.as_slice() {
            [RedisResult::Int64(replicas)] if *replicas >= i64::from(wanted) => Ok(done),
            [RedisResult::Int64(replicas)] => {
                let error = failures::too_few_replicas(*replicas, wanted, within);
                Err(Error::Other(error))
            }
            _ => Err(Error::TypeError),
        }
    }

    /// Gives a key its expiry unless it has one: the reporter may have set a shorter one.
    async fn expire(&self, key: &str) -> Result<(), String> {
        let seconds = RedisParameter::Int64(UNREPORTED_SECONDS.cast_signed());
        self.twice(key, async |via| {
            via.execute("EXPIRE", [text(key), seconds.clone(), text("NX")]).await
        })
        .await
        .map(drop)
    }
}

impl Topology {
    fn cluster(map: Map) -> Rc<Self> {
        Rc::new(Self::Cluster {
            map: RefCell::new(map),
            asked_ms: now_ms(),
            outdated: Cell::new(false),
        })
    }

    const fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster { .. })
    }

    fn node(&self, slot: u16) -> Option<Address> {
        match self {
            Self::One => None,
            Self::Cluster { map, .. } => map.borrow().node(slot).cloned(),
        }
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

    fn is_to_be_asked_anew(&self) -> bool {
        match self {
            Self::One => false,
            Self::Cluster { asked_ms, outdated, .. } => outdated.get() && now_ms() > asked_ms + MAP_ANEW_MS,
        }
    }
}

/// The arguments of [`ADD_TOGETHER`].
fn add_together(sets: &[Set]) -> Vec<RedisParameter> {
    let key = sets.first().map_or("", |set| &set.key);
    let mut arguments = [ADD_TOGETHER, "1", key].map(text).to_vec();
    for Set { key, members, .. } in sets {
        arguments.extend([text(key), text(members.len().to_string())]);
        arguments.extend(members.iter().map(text));
    }
    arguments
}

/// What a script says of an id.
fn known_to_be(said: &RedisResult) -> Option<Answer> {
    match said {
        RedisResult::Int64(said) => added(*said),
        _ => None,
    }
}

/// Whether an error of `CLUSTER NODES` says that there is no cluster.
fn is_no_cluster(error: &str) -> bool {
    let error = error.to_ascii_lowercase();
    error.contains("cluster support disabled") || error.contains("unknown command")
}

/// Whether an error of `CLUSTER NODES` says that this user may not ask.
fn is_forbidden(error: &str) -> bool {
    let error = error.to_ascii_lowercase();
    error.contains("noperm") || error.contains("no permissions")
}

fn text(value: impl AsRef<str>) -> RedisParameter {
    RedisParameter::Binary(value.as_ref().as_bytes().to_vec())
}
