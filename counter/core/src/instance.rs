//! What one instance of the component keeps between requests. It makes requests faster; none depends on it.

mod drain;
mod flush;
mod ids;
mod log;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use futures::future;
use verve_protocol::{CallbackJob, Id, Window};

use crate::answer::{Answer, Limit, NotCounted};
use crate::callback::Callback;
use crate::circuit::{Circuit, OPEN_MS, Passage};
use crate::config::{self, Config, InvalidVariable, Log, Policy, SPOOL_LIMIT, VARIABLES};
use crate::counted::{Counters, Place};
use crate::ports::{Host, Limit as _};
use crate::queue::{NotRecorded, Recorded};
use crate::redis::{Node, Redis};
use crate::redis_error::RedisError;
use crate::spool::Spool;
use crate::spooled::SpoolError;
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
