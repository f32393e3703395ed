//! A model of Redis servers.
//!
//! It knows the commands that the component and the reporter use, and runs the scripts unchanged,
//! with the Lua of Redis.

mod data;
mod follower;
mod script;
mod stream;

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use verve_counter_core::reply::Reply;
use verve_protocol::slot::{SLOTS, slot};

use data::Data;
pub use data::Entry;
use follower::Follower;
use script::Scripts;

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// No value.
    Nil,
    /// A number.
    Number(i64),
    /// A text.
    Text(String),
    /// A status, such as `OK`.
    Status(String),
    /// Several answers.
    Many(Vec<Self>),
    /// An error: a code and a message.
    Error(String),
}

impl Answer {
    fn ok() -> Self {
        Self::Status("OK".to_owned())
    }

    /// Returns the answer as Spin's hosts do: nested answers become one flat list.
    ///
    /// # Errors
    /// The error in the answer.
    pub fn flat(self) -> Result<Vec<Reply>, String> {
        Ok(match self {
            Self::Nil => vec![Reply::Nothing],
            Self::Number(number) => vec![Reply::Number(number)],
            Self::Text(text) | Self::Status(text) => vec![Reply::Text(text)],
            Self::Error(error) => return Err(error),
            Self::Many(answers) => {
                let flat: Result<Vec<Vec<Reply>>, String> = answers.into_iter().map(Self::flat).collect();
                flat?.concat()
            }
        })
    }
}

/// The state of a link to a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// The server answers.
    #[default]
    Up,
    /// There is no server at the address: connections are refused.
    Refused,
    /// Messages do not arrive, and no answers come back.
    Silent,
    /// The server runs the commands, but its answers are lost.
    Deaf,
}

impl Link {
    /// Returns the answer that this link carries back, if any.
    ///
    /// Runs `done` at the other end if the message arrives. Returns `refused` if the link is
    /// refused.
    pub fn carry<T>(self, refused: T, done: impl FnOnce() -> T) -> Option<T> {
        match self {
            Self::Refused => Some(refused),
            Self::Silent => None,
            Self::Deaf => {
                done();
                None
            }
            Self::Up => Some(done()),
        }
    }

    /// Returns the state of this link and another link in series.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Refused, _) | (_, Self::Refused) => Self::Refused,
            (Self::Silent, _) | (_, Self::Silent) => Self::Silent,
            (Self::Deaf, _) | (_, Self::Deaf) => Self::Deaf,
            (Self::Up, Self::Up) => Self::Up,
        }
    }
}

/// One server.
pub struct Server {
    /// The host name, by which clients reach the server.
    pub host: String,
    /// Whether the server is reachable.
    pub link: Cell<Link>,
    /// Whether the server is full, so that nothing may be added.
    pub is_full: Cell<bool>,
    /// How often the server was started.
    ///
    /// A connection belongs to the start at which it was opened.
    pub starts: Cell<u64>,
    /// How many followers acknowledge writes, if no follower is simulated.
    pub replicas: Cell<i64>,
    /// The follower that takes over at a failover.
    follower: RefCell<Option<Follower>>,
    /// Whether the user is not allowed to get the cluster's map.
    pub hides_map: Cell<bool>,
    /// The number of commands that clients sent.
    pub commands: Cell<u64>,
    data: Rc<RefCell<Data>>,
    scripts: Scripts,
    cluster: Rc<RefCell<Cluster>>,
    number: usize,
}

/// Which server owns which slots; empty if the servers are not in a cluster.
#[derive(Default)]
struct Cluster {
    hosts: Vec<String>,
    owners: Vec<usize>,
    /// A slot that moves, and the number of the server that receives it.
    moving: Option<(u16, usize)>,
}

/// Returns the first key of a command, if it has one.
#[must_use]
pub fn key(words: &[String]) -> Option<&str> {
    let at = match words[0].as_str() {
        "EVAL" | "EVALSHA" => return (words[2] != "0").then(|| words[3].as_str()),
        "XREADGROUP" => words.iter().position(|word| word == "STREAMS")? + 1,
        "XGROUP" | "XINFO" => 2,
        "SCRIPT" | "TIME" | "PING" => return None,
        _ => 1,
    };
    words.get(at).map(String::as_str)
}

/// Returns the name of a command in capital letters.
fn in_capitals(name: &str) -> Cow<'_, str> {
    match name.bytes().any(|byte| byte.is_ascii_lowercase()) {
        true => Cow::Owned(name.to_ascii_uppercase()),
        false => Cow::Borrowed(name),
    }
}

impl Cluster {
    /// Returns whether a server owns a key.
    fn is_of(&self, key: &str, server: usize) -> bool {
        self.owners.is_empty() || self.owners.get(usize::from(slot(key))) == Some(&server)
    }
}

/// The port of all servers.
pub const PORT: u16 = 6379;

impl Server {
    /// Creates a server that is not in a cluster.
    #[must_use]
    pub fn alone(host: &str) -> Rc<Self> {
        Self::new(host, 0, &Rc::default())
    }

    /// Creates a cluster of these hosts, with the slots shared equally.
    #[must_use]
    pub fn cluster(hosts: &[&str]) -> Vec<Rc<Self>> {
        Self::cluster_with(hosts, &[])
    }

    /// Creates a cluster of these hosts, and of spare ones that have no slots.
    ///
    /// A spare one becomes the primary at a failover.
    #[must_use]
    pub fn cluster_with(hosts: &[&str], spare: &[&str]) -> Vec<Rc<Self>> {
        let all = [hosts, spare].concat();
        let cluster = Cluster {
            hosts: all.iter().map(|&host| host.to_owned()).collect(),
            owners: (0..usize::from(SLOTS))
                .map(|slot| slot * hosts.len() / usize::from(SLOTS))
                .collect(),
            moving: None,
        };
        let cluster = Rc::new(RefCell::new(cluster));
        let servers = all.iter().enumerate();
        servers
            .map(|(number, host)| Self::new(host, number, &cluster))
            .collect()
    }

    fn new(host: &str, number: usize, cluster: &Rc<RefCell<Cluster>>) -> Rc<Self> {
        let data = Rc::default();
        let own = cluster.clone();
        let owns = move |key: &str| own.borrow().is_of(key, number);
        Rc::new(Self {
            host: host.to_owned(),
            link: Cell::default(),
            is_full: Cell::default(),
            starts: Cell::default(),
            replicas: Cell::default(),
            follower: RefCell::default(),
            hides_map: Cell::default(),
            commands: Cell::default(),
            scripts: Scripts::new(&data, owns),
            data,
            cluster: Rc::clone(cluster),
            number,
        })
    }

    /// Restarts the server, without its data if `loses`.
    pub fn restart(&self, loses: bool) {
        self.starts.set(self.starts.get() + 1);
        self.link.set(Link::Up);
        if loses {
            self.data.borrow_mut().entries.clear();
        }
        self.scripts.forget();
    }

    /// Gives the server a new follower, which begins with all its data.
    ///
    /// If `waits_for_own`, `WAIT` behaves as since Redis 7.2.
    pub fn follow(&self, waits_for_own: bool) {
        self.follower.replace(Some(Follower::of(self, waits_for_own)));
    }

    /// Returns whether the server has a follower.
    #[must_use]
    pub fn has_follower(&self) -> bool {
        self.follower.borrow().is_some()
    }

    /// Connects the follower to the server, or disconnects it.
    pub fn link_follower(&self, is_linked: bool) {
        if let Some(follower) = &*self.follower.borrow() {
            follower.link(is_linked);
        }
    }

    /// Replaces the server by its follower.
    ///
    /// The follower lacks the writes of the last `lag_us` microseconds that were not waited for.
    /// The new server has no follower. Returns since when writes are lost, in Unix microseconds, if
    /// any are lost.
    pub fn take_over(&self, now_us: u64, lag_us: u64) -> Option<u64> {
        let follower = self.follower.take();
        self.restart(false);
        let (data, lost_us) = follower?.end(now_us, lag_us);
        self.data.replace(data);
        lost_us
    }

    /// Replaces the server by its follower, which has the address of another server.
    ///
    /// That one must have no slots. See [`Self::take_over`] for the rest.
    pub fn take_over_at(&self, other: &Self, now_us: u64, lag_us: u64) -> Option<u64> {
        // The follower runs the last commands as long as the slots are those of this server.
        let (data, lost_us) = self.follower.take()?.end(now_us, lag_us);
        self.fail_over_to(other);
        self.restart(true);
        other.data.replace(data);
        lost_us
    }

    /// Gives the slots of this server to another one that has none, without the data.
    ///
    /// Connections to this server stay open.
    pub fn fail_over_to(&self, other: &Self) {
        self.data.borrow_mut().entries.clear();
        other.follower.take();
        for owner in &mut self.cluster.borrow_mut().owners {
            if *owner == self.number {
                *owner = other.number;
            }
        }
    }

    /// Moves a slot, with its keys, to another server of the cluster.
    ///
    /// The followers of both servers get the same keys.
    pub fn move_slot(&self, slot_number: u16, to: &Self) {
        let mut own = self.data.borrow_mut();
        let mut others = to.data.borrow_mut();
        let keys: Vec<String> = own
            .entries
            .keys()
            .filter(|key| slot(key) == slot_number)
            .cloned()
            .collect();
        for key in keys {
            if let Some(entry) = own.entries.remove(&key) {
                others.entries.insert(key, entry);
            }
        }
        others.next_ms = 0;
        drop((own, others));
        for server in [self, to] {
            if let Some(follower) = &mut *server.follower.borrow_mut() {
                *follower = follower.renewed(server);
            }
        }
        let mut cluster = self.cluster.borrow_mut();
        cluster.owners[usize::from(slot_number)] = to.number;
        cluster.moving = None;
    }

    /// Begins to move a slot: clients ask `to` for keys that are not here.
    pub fn begin_to_move(&self, slot_number: u16, to: &Self) {
        self.cluster.borrow_mut().moving = Some((slot_number, to.number));
    }

    /// Returns all keys and their entries.
    #[must_use]
    pub fn entries(&self) -> BTreeMap<String, Entry> {
        self.data.borrow().entries.clone()
    }

    /// Returns the members of a set; none if the key does not exist.
    #[must_use]
    pub fn members(&self, key: &str) -> BTreeSet<String> {
        match self.data.borrow().entries.get(key).map(|entry| &entry.value) {
            Some(data::Value::Set(members)) => members.clone(),
            _ => BTreeSet::new(),
        }
    }

    /// Returns the fields of a hash; none if the key does not exist.
    #[must_use]
    pub fn fields(&self, key: &str) -> BTreeMap<String, String> {
        match self.data.borrow().entries.get(key).map(|entry| &entry.value) {
            Some(data::Value::Hash(fields)) => fields.clone(),
            _ => BTreeMap::new(),
        }
    }

    /// Returns how many entries a stream has.
    #[must_use]
    pub fn stream_len(&self, key: &str) -> usize {
        self.stream(key).len()
    }

    /// Returns the fields and values of each entry of a stream.
    ///
    /// There are none if the key does not exist.
    #[must_use]
    pub fn stream(&self, key: &str) -> Vec<Vec<String>> {
        match self.data.borrow().entries.get(key).map(|entry| &entry.value) {
            Some(data::Value::Stream(stream)) => stream.entries.values().cloned().collect(),
            _ => Vec::new(),
        }
    }

    /// Returns how many entries of a stream are older than a time in Unix milliseconds.
    #[must_use]
    pub fn stream_len_at(&self, key: &str, at_ms: u64) -> usize {
        match self.data.borrow().entries.get(key).map(|entry| &entry.value) {
            Some(data::Value::Stream(stream)) => stream.entries.range(..(at_ms, 0)).count(),
            _ => 0,
        }
    }

    /// Returns how many members a sorted set has.
    #[must_use]
    pub fn sorted_len(&self, key: &str) -> usize {
        match self.data.borrow().entries.get(key).map(|entry| &entry.value) {
            Some(data::Value::Sorted(members)) => members.len(),
            _ => 0,
        }
    }

    /// Returns the highest score of a sorted set, if it has members.
    #[must_use]
    pub fn highest_score(&self, key: &str) -> Option<f64> {
        match self.data.borrow().entries.get(key).map(|entry| &entry.value) {
            Some(data::Value::Sorted(members)) => members.values().copied().reduce(f64::max),
            _ => None,
        }
    }

    /// Stores another script in place of the one that was sent.
    ///
    /// Returns the hash of the sent one, by which clients run it.
    #[must_use]
    pub fn load_in_place(&self, sent: &str, script: &str) -> Answer {
        Answer::Text(self.scripts.load(sent, script))
    }

    /// Runs a command of a client, at a time in Unix microseconds.
    ///
    /// `is_asking` means that the client was redirected here for a slot that moves.
    #[must_use]
    pub fn execute(&self, words: &[String], now_us: u64, is_asking: bool, client: u64) -> Answer {
        self.commands.set(self.commands.get() + 1);
        let answer = self.run(words, now_us, is_asking, client);
        if let Some(follower) = &*self.follower.borrow()
            && self.data.borrow().has_written
        {
            // The follower has not loaded the scripts, so it gets their text.
            let script = match words {
                [command, hash, ..] if command == "EVALSHA" => self.scripts.loaded(hash),
                _ => None,
            };
            let sent = match script {
                Some(script) => Cow::Owned([&["EVAL".to_owned(), script.to_string()], &words[2..]].concat()),
                None => Cow::Borrowed(words),
            };
            follower.note(&sent, now_us, self.is_full.get(), client);
        }
        answer
    }

    fn run(&self, words: &[String], now_us: u64, is_asking: bool, client: u64) -> Answer {
        let Some((command, arguments)) = words.split_first() else {
            return Answer::Error("ERR no command".to_owned());
        };
        self.data.borrow_mut().begin(now_us, self.is_full.get());
        match (&*in_capitals(command), arguments) {
            ("ASKING", []) => Answer::ok(),
            ("WAIT", [_, _]) => {
                let follower = self.follower.borrow();
                let follower = follower.as_ref().map(|follower| follower.wait(client));
                Answer::Number(follower.unwrap_or_else(|| self.replicas.get()))
            }
            ("CLUSTER", [what]) if what == "SLOTS" && self.hides_map.get() => {
                Answer::Error("NOPERM User default has no permissions to run the 'cluster|slots' command".to_owned())
            }
            ("CLUSTER", [what]) if what == "SLOTS" => self.slots(),
            ("SCRIPT", [what, script]) if what.eq_ignore_ascii_case("LOAD") => {
                Answer::Text(self.scripts.load(script, script))
            }
            ("EVAL", [script, number, rest @ ..]) => self.evaluate(script, number, rest, is_asking),
            ("EVALSHA", [hash, number, rest @ ..]) => match self.scripts.loaded(hash) {
                Some(script) => self.evaluate(&script, number, rest, is_asking),
                None => Answer::Error("NOSCRIPT No matching script. Please use EVAL.".to_owned()),
            },
            (name, _) => match key(words).and_then(|key| self.elsewhere(&[key.to_owned()], is_asking)) {
                Some(elsewhere) => elsewhere,
                None => self.data.borrow_mut().execute(name, arguments),
            },
        }
    }

    /// Runs a script.
    ///
    /// `number` is the number of keys in `rest`, which come before the arguments.
    fn evaluate(&self, script: &str, number: &str, rest: &[String], is_asking: bool) -> Answer {
        let number: usize = number.parse().unwrap_or_default();
        let (keys, arguments) = rest.split_at(number.min(rest.len()));
        let elsewhere = self.elsewhere(keys, is_asking);
        elsewhere.unwrap_or_else(|| self.scripts.run(script, keys, arguments, is_asking))
    }

    /// Returns whether this server owns a slot.
    #[must_use]
    pub fn has_slot(&self, slot: u16) -> bool {
        self.cluster.borrow().owners.get(usize::from(slot)) == Some(&self.number)
    }

    /// Returns whether this server owns slots; a single server owns all.
    #[must_use]
    pub fn has_slots(&self) -> bool {
        let cluster = self.cluster.borrow();
        cluster.owners.is_empty() || cluster.owners.contains(&self.number)
    }

    /// Returns whether this server owns a key.
    #[must_use]
    pub fn owns(&self, key: &str) -> bool {
        self.cluster.borrow().is_of(key, self.number)
    }

    /// Returns the answer to a client whose keys are not here.
    fn elsewhere(&self, keys: &[String], is_asking: bool) -> Option<Answer> {
        let cluster = self.cluster.borrow();
        if cluster.hosts.is_empty() {
            return None;
        }
        let first = slot(keys.first()?);
        if keys.iter().any(|key| slot(key) != first) {
            return Some(Answer::Error(
                "CROSSSLOT Keys in request don't hash to the same slot".to_owned(),
            ));
        }
        let owner = cluster.owners[usize::from(first)];
        let sent = |word: &str, to: usize| Answer::Error(format!("{word} {first} {}:{PORT}", cluster.hosts[to]));
        let data = self.data.borrow();
        let here = keys.iter().filter(|key| data.entries.contains_key(*key)).count();
        let again = || Answer::Error("TRYAGAIN Multiple keys request during rehashing of slot".to_owned());
        if owner != self.number {
            let may_be_here = is_asking && cluster.moving == Some((first, self.number));
            if !may_be_here {
                return Some(sent("MOVED", owner));
            }
            return (keys.len() > 1 && here < keys.len()).then(again);
        }
        let (_, to) = cluster.moving.filter(|(moving, _)| *moving == first)?;
        match here {
            _ if here == keys.len() => None,
            0 => Some(sent("ASK", to)),
            _ => Some(again()),
        }
    }

    /// Returns the slot that moves, and the number of the server that receives it.
    #[must_use]
    pub fn moving(&self) -> Option<(u16, usize)> {
        self.cluster.borrow().moving
    }

    fn slots(&self) -> Answer {
        let cluster = self.cluster.borrow();
        if cluster.hosts.is_empty() {
            return Answer::Error("ERR This instance has cluster support disabled".to_owned());
        }
        let number = |number: usize| Answer::Number(i64::try_from(number).unwrap_or_default());
        let mut ranges = Vec::new();
        let mut first = 0;
        while first < cluster.owners.len() {
            let owner = cluster.owners[first];
            let same = cluster.owners[first..].iter().take_while(|other| **other == owner);
            let last = first + same.count() - 1;
            let node = vec![
                Answer::Text(cluster.hosts[owner].clone()),
                number(usize::from(PORT)),
                Answer::Text(format!("{owner:040}")),
                Answer::Many(Vec::new()),
            ];
            ranges.push(Answer::Many(vec![number(first), number(last), Answer::Many(node)]));
            first = last + 1;
        }
        Answer::Many(ranges)
    }
}
