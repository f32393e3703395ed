//! Redis servers, by a model: what the component asks of them, and the scripts as they are, by the Lua that Redis has.

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

/// What a command is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// No value.
    Nil,
    /// A number.
    Number(i64),
    /// A text.
    Text(String),
    /// A text that says how it went.
    Status(String),
    /// Several.
    Many(Vec<Self>),
    /// What went wrong: a code, and words.
    Error(String),
}

impl Answer {
    fn ok() -> Self {
        Self::Status("OK".to_owned())
    }

    /// As Spin's hosts tell it: what is nested one behind the other.
    ///
    /// # Errors
    /// What went wrong.
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

/// Whether a server is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// It answers.
    #[default]
    Up,
    /// Nobody is at its address.
    Refused,
    /// Nothing comes back, and nothing arrives.
    Silent,
    /// It does what it is asked for, and its answers are lost.
    Deaf,
}

impl Link {
    /// What comes back of something that is done at the other end; `refused` if nobody is there.
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

    /// What is left of this one where there is another one behind it.
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
    /// Its name, by which clients reach it.
    pub host: String,
    /// Whether it is there.
    pub link: Cell<Link>,
    /// Whether it is full, so that nothing may be added.
    pub is_full: Cell<bool>,
    /// How often it was started: connections are to the one that they were opened to.
    pub starts: Cell<u64>,
    /// How many of its replicas acknowledge what is written, where none follows it.
    pub replicas: Cell<i64>,
    /// What follows it, to take its place.
    follower: RefCell<Option<Follower>>,
    /// Whether its user may not ask for the cluster's map.
    pub hides_map: Cell<bool>,
    /// How many commands it was asked to run.
    pub commands: Cell<u64>,
    data: Rc<RefCell<Data>>,
    scripts: Scripts,
    cluster: Rc<RefCell<Cluster>>,
    number: usize,
}

/// Which server has which slots; empty if each is by itself.
#[derive(Default)]
struct Cluster {
    hosts: Vec<String>,
    owners: Vec<usize>,
    /// A slot on its way to another server.
    moving: Option<(u16, usize)>,
}

/// The first key of a command, if it has one.
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

impl Cluster {
    /// Whether a key is to be on this server.
    fn is_of(&self, key: &str, server: usize) -> bool {
        self.owners.is_empty() || self.owners.get(usize::from(slot(key))) == Some(&server)
    }
}

/// The port of all of them.
pub const PORT: u16 = 6379;

impl Server {
    /// One by itself.
    #[must_use]
    pub fn alone(host: &str) -> Rc<Self> {
        Self::new(host, 0, &Rc::default())
    }

    /// A cluster of these, each with as many slots as the others.
    #[must_use]
    pub fn cluster(hosts: &[&str]) -> Vec<Rc<Self>> {
        let cluster = Cluster {
            hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
            owners: (0..usize::from(SLOTS))
                .map(|slot| slot * hosts.len() / usize::from(SLOTS))
                .collect(),
            moving: None,
        };
        let cluster = Rc::new(RefCell::new(cluster));
        let servers = hosts.iter().enumerate();
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

    /// Starts it again, without its data if it `loses` them.
    pub fn restart(&self, loses: bool) {
        self.starts.set(self.starts.get() + 1);
        self.link.set(Link::Up);
        if loses {
            self.data.borrow_mut().entries.clear();
        }
        self.scripts.forget();
    }

    /// Has another one follow it, which begins with all that is there. `waits_for_own` says that `WAIT` is that of Redis since 7.2.
    pub fn follow(&self, waits_for_own: bool) {
        self.follower.replace(Some(Follower::of(self, waits_for_own)));
    }

    /// Has what comes to its follower come there, or not.
    pub fn link_follower(&self, is_linked: bool) {
        if let Some(follower) = &*self.follower.borrow() {
            follower.link(is_linked);
        }
    }

    /// Has its follower take its place, which does not have what was written in so long a time before, and not waited for. None follows that one.
    /// Says since when what was written is lost, in Unix microseconds, if something is.
    pub fn take_over(&self, now_us: u64, lag_us: u64) -> Option<u64> {
        let follower = self.follower.take();
        self.restart(false);
        let (data, lost_us) = follower?.end(now_us, lag_us);
        self.data.replace(data);
        lost_us
    }

    /// Moves a slot, with its keys, to another server of the cluster.
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
        let mut cluster = self.cluster.borrow_mut();
        cluster.owners[usize::from(slot_number)] = to.number;
        cluster.moving = None;
    }

    /// Begins to move a slot: keys that are not here are asked for there.
    pub fn begin_to_move(&self, slot_number: u16, to: &Self) {
        self.cluster.borrow_mut().moving = Some((slot_number, to.number));
    }

    /// All keys, and what is there.
    #[must_use]
    pub fn entries(&self) -> BTreeMap<String, Entry> {
        self.data.borrow().entries.clone()
    }

    /// The members of a set; none if it is not there.
    #[must_use]
    pub fn members(&self, key: &str) -> BTreeSet<String> {
        match self.data.borrow().entries.get(key).map(|entry| &entry.value) {
            Some(data::Value::Set(members)) => members.clone(),
            _ => BTreeSet::new(),
        }
    }

    /// The fields of a hash; none if it is not there.
    #[must_use]
    pub fn fields(&self, key: &str) -> BTreeMap<String, String> {
        match self.data.borrow().entries.get(key).map(|entry| &entry.value) {
            Some(data::Value::Hash(fields)) => fields.clone(),
            _ => BTreeMap::new(),
        }
    }

    /// How many entries a stream has.
    #[must_use]
    pub fn stream_len(&self, key: &str) -> usize {
        self.stream(key).len()
    }

    /// The entries of a stream, each with its fields and values; none if it is not there.
    #[must_use]
    pub fn stream(&self, key: &str) -> Vec<Vec<String>> {
        match self.data.borrow().entries.get(key).map(|entry| &entry.value) {
            Some(data::Value::Stream(stream)) => stream.entries.values().cloned().collect(),
            _ => Vec::new(),
        }
    }

    /// How many entries a stream has that were there at a time in Unix milliseconds.
    #[must_use]
    pub fn stream_len_at(&self, key: &str, at_ms: u64) -> usize {
        match self.data.borrow().entries.get(key).map(|entry| &entry.value) {
            Some(data::Value::Stream(stream)) => stream.entries.range(..(at_ms, 0)).count(),
            _ => 0,
        }
    }

    /// How many members a sorted set has.
    #[must_use]
    pub fn sorted_len(&self, key: &str) -> usize {
        match self.data.borrow().entries.get(key).map(|entry| &entry.value) {
            Some(data::Value::Sorted(members)) => members.len(),
            _ => 0,
        }
    }

    /// Keeps another script in place of the one that is sent, and answers by which hash it is found.
    #[must_use]
    pub fn load_in_place(&self, sent: &str, script: &str) -> Answer {
        Answer::Text(self.scripts.load(sent, script))
    }

    /// Runs a command of a client, at a time in Unix microseconds. `is_asking` says that the client was sent here for a slot that is on its way.
    #[must_use]
    pub fn execute(&self, words: &[String], now_us: u64, is_asking: bool, client: u64) -> Answer {
        self.commands.set(self.commands.get() + 1);
        // What scripts do reaches a follower, which has not loaded them.
        let sent = match words {
            [command, hash, rest @ ..] if command == "EVALSHA" => match self.scripts.loaded(hash) {
                Some(script) => Cow::Owned([&["EVAL".to_owned(), script], rest].concat()),
                None => return Answer::Error("NOSCRIPT No matching script. Please use EVAL.".to_owned()),
            },
            _ => Cow::Borrowed(words),
        };
        let answer = self.run(&sent, now_us, is_asking, client);
        if let Some(follower) = &*self.follower.borrow()
            && self.data.borrow().has_written
        {
            follower.note(&sent, now_us, self.is_full.get(), client);
        }
        answer
    }

    fn run(&self, words: &[String], now_us: u64, is_asking: bool, client: u64) -> Answer {
        let Some((command, arguments)) = words.split_first() else {
            return Answer::Error("ERR no command".to_owned());
        };
        self.data.borrow_mut().begin(now_us, self.is_full.get());
        match (command.to_ascii_uppercase().as_str(), arguments) {
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
            ("EVAL", [script, number, rest @ ..]) => {
                let number: usize = number.parse().unwrap_or_default();
                let (keys, rest) = rest.split_at(number.min(rest.len()));
                if let Some(elsewhere) = self.elsewhere(keys, is_asking) {
                    return elsewhere;
                }
                self.scripts.run(script, keys, rest, is_asking)
            }
            (name, _) => match key(words).and_then(|key| self.elsewhere(&[key.to_owned()], is_asking)) {
                Some(elsewhere) => elsewhere,
                None => self.data.borrow_mut().execute(name, arguments),
            },
        }
    }

    /// Whether a slot is here.
    #[must_use]
    pub fn has_slot(&self, slot: u16) -> bool {
        self.cluster.borrow().owners.get(usize::from(slot)) == Some(&self.number)
    }

    /// Whether a key is to be here.
    #[must_use]
    pub fn owns(&self, key: &str) -> bool {
        self.cluster.borrow().is_of(key, self.number)
    }

    /// What a client is told whose keys are not here.
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

    /// The slot that is on its way, and where to.
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
