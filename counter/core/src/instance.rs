//! What one instance of the component keeps between requests. It makes requests faster; none depends on it.

mod drain;
mod flush;
mod log;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures::future;
use verve_protocol::{CallbackJob, Id, Partition, Window};

use crate::answer::{Answer, Limit, NotCounted, Outcome};
use crate::callback::Callback;
use crate::circuit::{Circuit, OPEN_MS, Passage};
use crate::config::{self, Config, InvalidVariable, Log, Policy, SPOOL_LIMIT, VARIABLES};
use crate::counted::{Counters, Place};
use crate::ports::{Host, Limit as _, unique_name};
use crate::queue::{NotRecorded, Recorded, Taking, Turn, Waiter};
use crate::redis::{Node, Redis};
use crate::redis_error::RedisError;
use crate::sets::{by_partition, in_order};
use crate::spool::Spool;
use crate::spooled::SpoolError;
use crate::stats::index;
use drain::{Draining, look_into_spool};
use log::Logger;

/// How long a request waits for the spool. Beyond that somebody else holds its file locked, or the disk is not well.
const SPOOL_TIMEOUT: Duration = Duration::from_secs(2);

/// In the spool's state: there is no room for callback jobs.
const JOBS_FULL: &str = "jobs full";

/// Parsed variables, open connections and unflushed counts.
pub struct Instance<H: Host> {
    host: H,
    /// The application's variables.
    pub config: Config,
    redis: Redis<H>,
    /// What is known of each counter.
    pub counters: Counters,
    /// How often connections had been opened again when that was last forgotten.
    reconnects: Cell<u64>,
    spool: Spool<H>,
    /// For what is put into the spool while somebody waits.
    spool_limit: H::Limit,
    /// The same one, for what is done in the background: on a connection of its own, so that no request waits behind it.
    background: Spool<H>,
    /// Open while there is no room for callback jobs.
    jobs: Circuit,
    draining: Draining,
    /// Whether callback jobs were added since it was last seen that there is room.
    jobs_added: Cell<bool>,
    log: Logger<H>,
}

impl<H: Host> Instance<H> {
    /// One that does what the application's variables say, and looks into the spool for what was left there.
    ///
    /// # Errors
    /// If a variable is not there, or not valid.
    pub async fn load(host: H) -> Result<Rc<Self>, InvalidVariable> {
        let value = async |name| config::told(name, host.variable(name).await);
        let mut values = <[String; VARIABLES.len()]>::default();
        let told = future::join_all(VARIABLES.map(value)).await;
        for (value, told) in values.iter_mut().zip(told) {
            *value = told?;
        }
        let config = Config::parse(values)?;
        let spool_limit = match H::POLICY {
            Policy::Kept => config::spool_limit(&value(SPOOL_LIMIT).await?)?,
            Policy::Once => 0,
        };
        let redis = Redis::new(&host, &config);
        let [spool, background] = [(); 2].map(|()| Spool::new(&host, spool_limit, &config));
        let instance = Rc::new(Self {
            counters: Counters::new(config.keys.clone()),
            reconnects: Cell::new(0),
            spool_limit: host.limit(SPOOL_TIMEOUT),
            log: Logger::new(host.clone(), config.log),
            config,
            redis,
            spool,
            background,
            jobs: Circuit::default(),
            draining: Draining::default(),
            jobs_added: Cell::new(false),
            host,
        });
        if H::POLICY == Policy::Kept {
            instance.look_into_spool();
        }
        Ok(instance)
    }

    /// Brings to Redis what may be left in the spool, in the background.
    pub fn look_into_spool(self: &Rc<Self>) {
        self.host.spawn(look_into_spool(self.clone()));
    }

    /// The window that is open now.
    pub fn window(&self) -> Window {
        self.config.window_length.window_at_ms(self.host.now_ms())
    }

    /// Tells the reporter, once in each window, that a counter is in use, if it has a name.
    async fn tell_counter(&self, place: &Place) -> Result<Option<Limit>, RedisError> {
        let Place { counted, window } = place;
        let Some(name) = counted.keys.counter() else {
            return Ok(None);
        };
        let told = self.redis.tell_counter(&counted.keys, name, false).await?;
        if told.is_none() {
            counted.told.set(Some(*window));
        }
        Ok(told)
    }

    /// Adds the window to the index, once for each window. Where the index is away, the spool may have it already.
    async fn index(&self, place: &Place) -> Result<(), RedisError> {
        let Place { counted, window } = place;
        let partitions = self.config.partitions.count();
        match self.redis.index(&counted.keys, *window, partitions).await {
            Ok(()) => {
                counted.indexed.set(Some(*window));
                counted.index_spooled.set(None);
                Ok(())
            }
            Err(_) if counted.index_spooled.get() == Some(*window) => Ok(()),
            Err(redis) => Err(redis),
        }
    }

    /// Puts the window's entry of the index into the spool. An id is not `ok` without it: in a cluster, the index may be away while the id's
    /// set is not, and a set of a window that the reporter does not expect would be counted by nobody.
    async fn spool_index(&self, place: &Place, redis: RedisError) -> Recorded<()> {
        let Place { counted, window } = place;
        let (name, now_ms) = (unique_name(&self.host), self.host.now_ms());
        let batch = index(&counted.keys, *window, name, now_ms, self.config.partitions.count());
        let spooled = self.in_time(self.spool.add_batch(&batch, 0)).await;
        self.spooled(redis, spooled)?;
        counted.index_spooled.set(Some(*window));
        Ok(())
    }

    /// Records the id and, at the same time, the callback job. `ok` is answered when each is in Redis or in the spool.
    pub async fn record(self: &Rc<Self>, place: &Place, id: Id, callback: Option<Callback>) -> Answer {
        let job = callback.map(|Callback { endpoint, method }| CallbackJob {
            endpoint,
            method: method.unwrap_or(self.config.callback_method),
            window: place.window,
            revision: None,
        });
        if H::POLICY == Policy::Once {
            let recorded = self.record_at_once(place, id, job.as_ref()).await;
            return self.answer(place, id, recorded);
        }
        let recorded = match job {
            None => self.record_id(place, id).await,
            Some(job) => self.record_both(place, id, &job).await,
        };
        let answer = self.answer(place, id, recorded);
        self.note(place, answer);
        answer
    }

    /// Records the id and the job in one trip, and what came of it in the statistics.
    async fn record_at_once(self: &Rc<Self>, place: &Place, id: Id, job: Option<&CallbackJob>) -> Recorded<Answer> {
        let recorded = async {
            if place.is_to_be_told()
                && let Some(limit) = self.tell_counter(place).await?
            {
                return Ok(Err(NotCounted::Limited(limit)));
            }
            self.redis.record(place, id, job).await
        };
        recorded.await.map_err(|error| {
            if error == RedisError::TooManyJobs {
                // Redis is there, and so it can be told.
                self.note(place, Err(NotCounted::Unavailable));
            }
            Rc::new(NotRecorded::Redis(error))
        })
    }

    /// Records an id and a job, at the same time unless one of them may be refused: then the other one is not recorded either.
    async fn record_both(self: &Rc<Self>, place: &Place, id: Id, job: &CallbackJob) -> Recorded<Answer> {
        if self.config.endpoint_limit.is_some() {
            // Of an id that turns out to be beyond a limit as well, the job tells the count all the same.
            return match self.record_job(job).await? {
                Some(limit) => Ok(Err(NotCounted::Limited(limit))),
                None => self.record_id(place, id).await,
            };
        }
        if self.config.window_limit.is_some() {
            let answer = self.record_id(place, id).await?;
            if answer.is_ok() {
                self.record_job(job).await?;
            }
            return Ok(answer);
        }
        let (answer, job) = future::join(self.record_id(place, id), self.record_job(job)).await;
        job.and(answer)
    }

    /// Records ids, at most as many as are recorded together.
    pub async fn record_many(self: &Rc<Self>, place: &Place, ids: &[Id]) -> Vec<Answer> {
        let recorded = self.record_ids(place, ids, None).await;
        let answers = ids.iter().zip(recorded).map(|(id, recorded)| {
            let answer = self.answer(place, *id, recorded);
            // Where Redis is away, an instance that serves one request would only ask it once more.
            if H::POLICY == Policy::Kept || answer != Err(NotCounted::Unavailable) {
                self.note(place, answer);
            }
            answer
        });
        answers.collect()
    }

    /// The answer to who brought an id, and in the log.
    fn answer(&self, place: &Place, id: Id, recorded: Recorded<Answer>) -> Answer {
        match recorded {
            Ok(answer) => {
                match answer {
                    Ok(outcome) if self.config.log == Log::All => {
                        println!("verve: id {id} {} in window {}", outcome.as_str(), place.window);
                    }
                    Ok(_) => {}
                    Err(error) => self.log.refusal(&format!("id {id} not recorded: {error}")),
                }
                answer
            }
            Err(error) => {
                self.log.refusal(&format!("id {id} not recorded: {error}"));
                Err(NotCounted::Unavailable)
            }
        }
    }

    async fn record_id(self: &Rc<Self>, place: &Place, id: Id) -> Recorded<Answer> {
        if self.reconnects.replace(self.redis.reconnects()) != self.redis.reconnects() {
            self.counters.forget();
        }
        let is_seen = place.counted.seen.has(place.window, id);
        let node = self.node_of(place, id.partition(self.config.partitions));
        if is_seen && node.answered_lately() {
            return Ok(Ok(Outcome::Duplicate));
        }
        let (taking, since_ms) = match node.queue.wait(place, id).await {
            Turn::Recorded(recorded) => return recorded,
            Turn::Take(taking, since_ms) => (taking, since_ms),
        };
        let recorded = self.record_ids(place, &[id], since_ms).await.pop();
        // Those that came meanwhile.
        let waiters = taking.take();
        if !waiters.is_empty() {
            self.host.spawn(record_waiting(self.clone(), taking, waiters));
        }
        recorded.unwrap_or(Ok(Err(NotCounted::Unavailable)))
    }

    /// Records ids of a window in Redis, or else in the spool. Answers what came of each. If they have waited, it was since `since_ms` by the monotonic clock: for
    /// too long, and they go to the spool.
    async fn record_ids(self: &Rc<Self>, place: &Place, ids: &[Id], since_ms: Option<u64>) -> Vec<Recorded<Answer>> {
        let partitions = self.config.partitions;
        let sets = by_partition(ids, partitions);
        for partition in sets.keys() {
            let node = self.node_of(place, *partition);
            if node.is_due() {
                // Not by these ids: others would wait behind them.
                self.host.spawn(look_whether_back(self.clone(), node));
            }
        }
        let reconnects = self.redis.reconnects();
        let until_ms = match H::POLICY {
            Policy::Kept => since_ms.unwrap_or_else(|| self.host.monotonic_ms()) + self.patience_ms(),
            // There is nowhere else to put them.
            Policy::Once => u64::MAX,
        };
        let added = if since_ms.is_some() && self.host.monotonic_ms() > until_ms {
            Err(self.no_answer())
        } else {
            self.add_ids(place, &sets, until_ms).await
        };
        let added = match added {
            Ok(Ok(added)) => added,
            Ok(Err(limit)) => return vec![Ok(Err(NotCounted::Limited(limit))); ids.len()],
            // Of a named counter Redis is told when they are brought there.
            Err(error) => (sets.iter().map(|_| Err(error.clone())).collect(), Ok(())),
        };
        self.in_order(place, ids, sets, added, reconnects).await
    }

    /// Adds ids in Redis, and answers what came of those of each set, and whether their window is in the index or the spool; or the limit beyond which their
    /// counter is. Each step has its own time limit.
    /// None that could be done without begins after `until_ms`, by the monotonic clock.
    async fn add_ids(
        &self,
        place: &Place,
        sets: &BTreeMap<Partition, Vec<Id>>,
        until_ms: u64,
    ) -> Result<Result<(Vec<Result<Vec<Answer>, RedisError>>, Recorded<()>), Limit>, RedisError> {
        if place.is_to_be_told() {
            if let Some(limit) = self.tell_counter(place).await? {
                return Ok(Err(limit));
            }
            if self.host.monotonic_ms() > until_ms {
                return Err(self.no_answer());
            }
        }
        let adding = self.redis.add_ids(place, sets);
        if !place.is_to_be_indexed() {
            return Ok(Ok((adding.await, Ok(()))));
        }
        // At the same time, on another node perhaps: nothing is answered before both have ended.
        let (indexed, added) = future::join(self.index(place), adding).await;
        // Of what is not added, the index hears when it is drained.
        let is_added = |answers: &Result<Vec<Answer>, RedisError>| {
            (answers.as_ref()).is_ok_and(|answers| answers.iter().any(Result::is_ok))
        };
        let indexed = match indexed {
            Err(redis) if added.iter().any(is_added) => self.spool_index(place, redis).await,
            _ => Ok(()),
        };
        Ok(Ok((added, indexed)))
    }

    /// How long an id waits at most until something is asked of Redis for it, in milliseconds: as long as two attempts take.
    fn patience_ms(&self) -> u64 {
        2 * self.config.redis_timeout.as_millis() as u64
    }

    /// Redis has taken its time for others.
    fn no_answer(&self) -> RedisError {
        RedisError::NoAnswer {
            within_ms: self.patience_ms(),
        }
    }

    /// What came of each id, by what came of those of each set. What is not in Redis is spooled.
    async fn in_order(
        self: &Rc<Self>,
        place: &Place,
        ids: &[Id],
        sets: BTreeMap<Partition, Vec<Id>>,
        (added, indexed): (Vec<Result<Vec<Answer>, RedisError>>, Recorded<()>),
        reconnects: u64,
    ) -> Vec<Recorded<Answer>> {
        let mut recorded = BTreeMap::new();
        for ((partition, ids), added) in sets.iter().zip(added) {
            let answers = match &indexed {
                Err(error) if added.is_ok() => Err(error.clone()),
                _ => self.recorded(place, *partition, ids, added, reconnects).await,
            };
            recorded.insert(*partition, answers);
        }
        in_order(ids, self.config.partitions, recorded)
    }

    fn node_of(&self, place: &Place, partition: Partition) -> Rc<Node<H>> {
        self.redis.node_of(|| place.ids(partition))
    }

    /// Spools ids of one set that Redis did not record. `reconnects` are those before they were added.
    async fn recorded(
        self: &Rc<Self>,
        place: &Place,
        partition: Partition,
        ids: &[Id],
        added: Result<Vec<Answer>, RedisError>,
        reconnects: u64,
    ) -> Recorded<Vec<Answer>> {
        let node = self.node_of(place, partition);
        match added {
            Ok(answers) => {
                let recorded = ids.iter().zip(&answers);
                let recorded = recorded.filter(|(_, answer)| answer.is_ok());
                // Otherwise it may be that a server has them that has lost its data since.
                if self.redis.reconnects() == reconnects {
                    self.counters.add_seen(place, recorded.map(|(id, _)| id));
                }
                if node.told_away.get() != 0 {
                    let instance = self.clone();
                    self.host.spawn(async move { instance.tell_well(&node).await });
                }
                Ok(answers)
            }
            Err(redis) => {
                self.counters.forget();
                let spooling = self.spool.add_ids(place.ids(partition), ids);
                let spooled = self.in_time(spooling).await;
                self.spooled(redis, spooled)?;
                let now = self.host.monotonic_ms();
                if node.circuit.is_open() && node.told_away.get() < now {
                    node.told_away.set(now + OPEN_MS);
                    let instance = self.clone();
                    self.host.spawn(async move { instance.tell_away(&node).await });
                }
                Ok(vec![Ok(Outcome::Spooled); ids.len()])
            }
        }
    }

    /// Records a callback job, unless it is beyond a limit.
    async fn record_job(&self, job: &CallbackJob) -> Recorded<Option<Limit>> {
        let command = self.add_job(job);
        let redis = match self.jobs.enter(|| self.host.monotonic_ms(), OPEN_MS) {
            Passage::Barred => RedisError::TooManyJobs,
            Passage::Free | Passage::Trial => match self.redis.add_job(&self.config.keys, job, &command).await {
                Ok(beyond) => {
                    self.jobs_added.set(true);
                    return Ok(beyond);
                }
                Err(redis) => redis,
            },
        };
        let spooled = self.in_time(self.spool.add_command(command)).await;
        self.spooled(redis, spooled)?;
        Ok(None)
    }

    /// The command that adds a callback job.
    fn add_job(&self, job: &CallbackJob) -> Vec<String> {
        let mut command = vec!["XADD".to_owned(), self.config.keys.callbacks(), "*".to_owned()];
        for (field, value) in job.to_fields() {
            command.extend([field.to_owned(), value]);
        }
        command
    }

    /// Notes that something went into the spool instead of to Redis, or that even this failed.
    fn spooled(&self, redis: RedisError, spooled: Result<(), SpoolError>) -> Recorded<()> {
        if let Err(spool) = spooled {
            return Err(Rc::new(match spool {
                SpoolError::None => NotRecorded::Redis(redis),
                spool => NotRecorded::Both { redis, spool },
            }));
        }
        self.log.error(&format!("spooling: {redis}"));
        self.draining.is_due.set(true);
        Ok(())
    }

    /// Tells other instances that a node is away. If they are not told, they find out themselves.
    async fn tell_away(&self, node: &Node<H>) {
        let _ = self.background.tell(&node.name(), self.host.now_ms() + OPEN_MS).await;
    }

    /// Tells other instances that a node that was away is back, if they were told that it is.
    async fn tell_well(&self, node: &Node<H>) {
        if node.told_away.replace(0) != 0 {
            let _ = self.background.untell(&node.name()).await;
        }
    }

    /// Waits for the spool, as long as it is waited for.
    async fn in_time(&self, spooling: impl Future<Output = Result<(), SpoolError>>) -> Result<(), SpoolError> {
        let spooled = self.spool_limit.within(Box::pin(spooling)).await;
        spooled.unwrap_or_else(|| {
            Err(SpoolError::NoAnswer {
                within_ms: SPOOL_TIMEOUT.as_millis() as u64,
            })
        })
    }
}

/// Records ids that wait for a node, then those that have come meanwhile, until there are none.
async fn record_waiting<H: Host>(
    instance: Rc<Instance<H>>,
    taking: Taking<H, Place, Answer>,
    mut waiters: Vec<Waiter<H, Place, Answer>>,
) {
    while let Some(place) = waiters.first().map(|first| first.place.clone()) {
        let ids: Vec<Id> = waiters.iter().map(|waiter| waiter.id).collect();
        let since_ms = waiters.iter().map(|waiter| waiter.since_ms).min();
        let recorded = instance.record_ids(&place, &ids, since_ms).await;
        let recorded = waiters.into_iter().zip(recorded);
        recorded.for_each(|(waiter, recorded)| waiter.done(recorded));
        waiters = taking.take();
    }
}

/// Asks a node that was away whether it is back.
async fn look_whether_back<H: Host>(instance: Rc<Instance<H>>, node: Rc<Node<H>>) {
    if node.is_back().await {
        instance.tell_well(&node).await;
    }
}
