//! Recording in Redis: one connection per server, kept by the instance and shared by its requests.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use futures::future;
use spin_sdk::redis::{Connection, Error, RedisParameter, RedisResult};
use verve_protocol::keys::{MAX_QUEUED_JOBS, UNREPORTED_SECONDS};
use verve_protocol::spool_state::SPOOL_STATE_SECONDS;
use verve_protocol::{CallbackJob, Id, Keys, Partition, RedisUrl, SpoolState, Window};

use crate::answer::{Answer, Limit, Outcome};
use crate::batches::{Batch, Distinct};
use crate::circuit::{Circuit, OPEN_MS, Passage};
use crate::clock::{look_again, now_ms};
use crate::config::Config;
use crate::deadlines::Deadlines;
use crate::failures;
use crate::limits::{ADD_JOB_WITHIN, ADD_WITHIN, added, endpoints_seconds};
use crate::once::Once;

/// From how many ids on they are added together: the script runs two commands and is one itself, so that it costs Redis no
/// more commands than there are ids.
const TOGETHER_FROM: usize = 3;

/// Adds ids to a set, and answers for each whether it was there before: see [`added`].
///
/// KEYS: the set. ARGV: the ids, all different.
const ADD_TOGETHER: &str = r"
local known = redis.call('SMISMEMBER', KEYS[1], unpack(ARGV))
redis.call('SADD', KEYS[1], unpack(ARGV))
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

/// One Redis server.
pub struct Server {
    url: RedisUrl,
    /// For one attempt, connecting included.
    timeout: Duration,
    /// The most ids of a window here.
    window_limit: Option<u64>,
    /// The most callback jobs of an endpoint in a window.
    endpoint_limit: Option<u64>,
    /// How many replicas must have what is recorded.
    wait_replicas: u32,
    /// How long they may take.
    replicas_within_ms: i64,
    deadlines: Rc<Deadlines>,
    connection: Once<Rc<Connection>, String>,
    /// Open while the server is away.
    pub circuit: Circuit,
    /// Until when other instances have been told that it is away, in Unix milliseconds; 0 if they are not.
    pub told_away: Cell<u64>,
    /// Why it last failed.
    last_error: RefCell<String>,
    /// The last window, by its start, and those of its partitions, whose sets of ids are known to have an expiry.
    expiring: RefCell<(u64, BTreeSet<Partition>)>,
}

impl Server {
    /// The server at `url`; connects when first used.
    pub fn new(url: RedisUrl, config: &Config) -> Self {
        Self {
            url,
            timeout: config.redis_timeout,
            window_limit: config.window_limit,
            endpoint_limit: config.endpoint_limit,
            wait_replicas: config.wait_replicas,
            replicas_within_ms: config.replicas_within_ms(),
            deadlines: Deadlines::new(config.redis_timeout),
            connection: Once::default(),
            circuit: Circuit::default(),
            told_away: Cell::new(0),
            last_error: RefCell::default(),
            expiring: RefCell::default(),
        }
    }

    /// Its name among instances of the component: its URL without password.
    pub fn name(&self) -> String {
        self.url.to_string()
    }

    /// How long a trial of a server that was away takes at most, in milliseconds: two attempts, and the circuit's time.
    pub fn trial_ms(&self) -> u64 {
        2 * self.timeout.as_millis() as u64 + OPEN_MS
    }

    /// Records ids in a window. Answers what came of each: the first of several equal ones is the new one.
    pub async fn add_ids(
        &self,
        keys: &Keys,
        (window, partition): (Window, Partition),
        ids: &[Id],
    ) -> Result<Vec<Answer>, String> {
        let key = keys.ids(window, partition);
        let distinct = Distinct::of(ids);
        let members = distinct.members();
        let new: Vec<Answer> = match self.window_limit {
            None if members.len() < TOGETHER_FROM => {
                self.twice(async |connection| {
                    let adds = members.iter().map(async |member| {
                        let new = connection.sadd(&key, std::slice::from_ref(member)).await? > 0;
                        Ok(Answer::Recorded(if new { Outcome::New } else { Outcome::Duplicate }))
                    });
                    let added = future::try_join_all(adds).await?;
                    self.replicated(connection, added).await
                })
                .await?
            }
            limit => {
                let limit = limit.map(|limit| limit.to_string());
                let script = if limit.is_some() { ADD_WITHIN } else { ADD_TOGETHER };
                let arguments = [script, "1", &key].map(text).into_iter();
                let arguments = arguments.chain(limit.iter().chain(&members).map(text));
                let arguments: Vec<RedisParameter> = arguments.collect();
                let known = self.twice(async |connection| {
                    let known = connection.execute("EVAL", arguments.clone()).await?;
                    self.replicated(connection, known).await
                });
                let known = known.await?.into_iter();
                known
                    .filter_map(|known| match known {
                        RedisResult::Int64(known) => added(known),
                        _ => None,
                    })
                    .collect()
            }
        };
        let answers = distinct
            .answers(&new)
            .ok_or_else(|| format!("{}: the answer has an unexpected length", self.url))?;
        if self.is_first(window, partition) && self.expire(&key).await.is_err() {
            // The ids are recorded all the same; the next ones set the expiry.
            self.expiring.borrow_mut().1.remove(&partition);
        }
        Ok(answers)
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
        self.twice(async |connection| {
            let added = connection.sadd(key, &members).await?;
            self.replicated(connection, added).await
        })
        .await?;
        self.expire(key).await
    }

    /// Whether the server was away for long enough to be asked again. Says so to one who asks; who does has to call
    /// [`Server::is_back`].
    pub fn is_due(&self) -> bool {
        self.circuit.is_open() && self.circuit.enter(now_ms, self.trial_ms()) == Passage::Trial
    }

    /// Asks the server whether it is back.
    pub async fn is_back(&self) -> bool {
        // Not `PING`: a user of few rights may do what recording takes, and no more.
        let nothing = async |connection: &Connection| connection.execute("EVAL", ["return 1", "0"].map(text)).await;
        let answer = self.once(Passage::Trial, nothing).await;
        match &answer {
            Ok(_) => drop(self.circuit.close()),
            Err(error) => self.failed(error),
        }
        answer.is_ok()
    }

    /// Adds a callback job, which `command` adds, unless its endpoint has had enough of them in its window.
    pub async fn add_job(&self, keys: &Keys, job: &CallbackJob, command: &[String]) -> Result<Option<Limit>, String> {
        let Some(limit) = self.endpoint_limit else {
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
        let answer = self
            .twice(async |connection| {
                let answer = connection.execute("EVAL", arguments.clone()).await?;
                self.replicated(connection, answer).await
            })
            .await?;
        Ok(match answer.as_slice() {
            [RedisResult::Int64(0)] => Some(Limit::Endpoint),
            _ => None,
        })
    }

    /// Runs a command that appends.
    pub async fn append(&self, command: &[String]) -> Result<(), String> {
        let Some((name, arguments)) = command.split_first() else {
            return Ok(());
        };
        let arguments: Vec<RedisParameter> = arguments.iter().map(text).collect();
        self.twice(async |connection| {
            connection.execute(name, arguments.clone()).await?;
            self.replicated(connection, ()).await
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
        let answer = self
            .twice(async |connection| {
                let answer = connection.execute("EVAL", arguments.clone()).await?;
                self.replicated(connection, answer).await
            })
            .await?;
        Ok(matches!(answer.as_slice(), [RedisResult::Int64(1)]))
    }

    /// Whether there is room for another callback job.
    pub async fn has_room(&self, keys: &Keys) -> Result<bool, String> {
        let stream = [text(keys.callbacks())];
        let answer = self
            .twice(async |connection| connection.execute("XLEN", stream.clone()).await)
            .await?;
        Ok(!matches!(answer.as_slice(), [RedisResult::Int64(length)] if length.cast_unsigned() >= MAX_QUEUED_JOBS))
    }

    /// Forgets a batch that has run, since nobody sends it again. If this fails, it is forgotten after a day.
    pub async fn forget(&self, keys: &Keys, batch: &Batch) {
        let own = [text(keys.spooled_batch(&batch.name))];
        let _ = self
            .twice(async |connection| connection.execute("DEL", own.clone()).await)
            .await;
    }

    /// Tells the state of a spool, for the reporter's metrics.
    pub async fn tell_spool(&self, keys: &Keys, name: &str, state: SpoolState) -> Result<(), String> {
        let (key, state) = (keys.spools(), state.to_string());
        self.twice(async |connection| {
            let told = connection.execute("HSET", [&key, name, &state].map(text));
            let expiry = [text(&key), RedisParameter::Int64(SPOOL_STATE_SECONDS.cast_signed())];
            future::try_join(told, connection.execute("EXPIRE", expiry)).await
        })
        .await
        .map(drop)
    }

    /// Waits until enough replicas have what this connection has written, which was `done`. Recording it once more changes nothing.
    async fn replicated<T>(&self, connection: &Connection, done: T) -> Result<T, Error> {
        if self.wait_replicas == 0 {
            return Ok(done);
        }
        let (wanted, within) = (self.wait_replicas, self.replicas_within_ms);
        let wait = [i64::from(wanted), within].map(RedisParameter::Int64);
        match connection.execute("WAIT", wait).await?.as_slice() {
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
        self.twice(async |connection| {
            connection
                .execute("EXPIRE", [text(key), seconds.clone(), text("NX")])
                .await
        })
        .await
        .map(drop)
    }

    /// Runs an idempotent command, again on a fresh connection if it fails.
    async fn twice<T>(&self, command: impl AsyncFn(&Connection) -> Result<T, Error>) -> Result<T, String> {
        self.guarded(async |passage| match self.once(passage, &command).await {
            Ok(value) => Ok(value),
            // Another request has found out meanwhile.
            Err(first) if passage == Passage::Free && self.circuit.is_open() => Err(first),
            Err(first) => {
                let second = self.once(passage, &command).await;
                second.map_err(|second| failures::both(first, &second))
            }
        })
        .await
    }

    /// Does what the circuit lets through, and tells it how that went.
    async fn guarded<T>(&self, work: impl AsyncFnOnce(Passage) -> Result<T, String>) -> Result<T, String> {
        let passage = self.circuit.enter(now_ms, self.trial_ms());
        if passage == Passage::Barred {
            let last = self.last_error.borrow();
            return Err(match last.as_str() {
                // Another instance has found out.
                "" => format!("{}: not reachable a moment ago", self.url),
                last => format!("a moment ago: {last}"),
            });
        }
        let result = work(passage).await;
        match &result {
            Ok(_) => drop(self.circuit.close()),
            Err(error) => {
                self.failed(error);
                // Those who wait for it would find out no better.
                self.deadlines.end_all();
            }
        }
        result
    }

    fn failed(&self, error: &str) {
        error.clone_into(&mut self.last_error.borrow_mut());
        self.circuit.open(now_ms() + OPEN_MS);
    }

    /// Runs a command within the timeout. A connection that failed, or was too slow, is given up.
    async fn once<T>(
        &self,
        passage: Passage,
        command: impl AsyncFn(&Connection) -> Result<T, Error>,
    ) -> Result<T, String> {
        let used = Cell::new(None);
        let attempt = async {
            let connection = self.connection.get(async || self.open().await, look_again).await?;
            used.set(Some(connection.clone()));
            command(&connection).await.map_err(|error| describe(&error))
        };
        let result = match self.deadlines.limit(attempt).await {
            Some(result) => result,
            None if passage == Passage::Free && self.circuit.is_open() => {
                Err("no answer, and not reachable a moment ago".to_owned())
            }
            None => Err(format!("no answer within {} ms", self.timeout.as_millis())),
        };
        result.map_err(|error| {
            if let Some(used) = used.take() {
                self.connection.clear_if(|kept| Rc::ptr_eq(kept, &used));
            }
            format!("{}: {error}", self.url)
        })
    }

    async fn open(&self) -> Result<Rc<Connection>, String> {
        match Connection::open(self.url.secret()).await {
            Ok(connection) => Ok(Rc::new(connection)),
            Err(error) => Err(describe(&error)),
        }
    }
}

fn text(value: impl AsRef<str>) -> RedisParameter {
    RedisParameter::Binary(value.as_ref().as_bytes().to_vec())
}

fn describe(error: &Error) -> String {
    match error {
        Error::InvalidAddress => failures::INVALID_ADDRESS.to_owned(),
        Error::TooManyConnections => failures::TOO_MANY_CONNECTIONS.to_owned(),
        Error::TypeError => failures::TYPE_ERROR.to_owned(),
        Error::Other(message) => message.clone(),
    }
}
