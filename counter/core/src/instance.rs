//! The state that one instance of the component keeps between requests.
//!
//! It makes requests faster, but no request depends on it.

mod drain;
mod flush;
mod ids;
mod log;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use futures::future;
use verve_protocol::{CallbackJob, Id, Window};

use crate::answer::{Answer, Answers, Limit, NotCounted, in_all};
use crate::callback::Callback;
use crate::circuit::{Circuit, CircuitState, OPEN_MS};
use crate::config::{self, Config, InvalidVariable, Log, Policy, SPOOL_LIMIT, VARIABLES};
use crate::counter_state::{CounterWindow, Counters};
use crate::ports::{Host, Limit as _};
use crate::queue::{NotRecorded, Recorded};
use crate::redis::{Node, Redis};
use crate::redis_error::RedisError;
use crate::spool::Spool;
use crate::spooled::SpoolError;
use drain::{Draining, look_into_spool};
use log::Logger;

/// How long a request waits for the spool.
///
/// If it takes longer, another process holds its file locked, or the disk has a problem.
const SPOOL_TIMEOUT: Duration = Duration::from_secs(2);

/// The name of a state in the spool: there is no room for callback jobs.
const JOBS_FULL: &str = "jobs full";

/// Parsed variables, open connections and unflushed counts.
pub struct Instance<H: Host> {
    host: H,
    /// The application's variables.
    pub config: Config,
    redis: Redis<H>,
    /// The state of each counter.
    pub counters: Counters,
    /// The number of changes of servers when the counter states were last cleared.
    changes: Cell<u64>,
    spool: Spool<H>,
    /// The time limit for spooling while a request waits.
    spool_limit: H::Limit,
    /// The same spool, for background work.
    ///
    /// It has a connection of its own, so that no request waits behind that work.
    background: Spool<H>,
    /// Open while there is no room for callback jobs.
    jobs: Circuit,
    draining: Draining,
    /// Whether callback jobs were added since the last check for room.
    jobs_added: Cell<bool>,
    log: Logger<H>,
}

impl<H: Host> Instance<H> {
    /// Loads an instance that the application's variables configure.
    ///
    /// It checks the spool for content that was left there.
    ///
    /// # Errors
    /// If a variable is missing or invalid.
    pub async fn load(host: H) -> Result<Rc<Self>, InvalidVariable> {
        let value = async |name| config::read_variable(name, host.variable(name).await);
        let mut values = <[String; VARIABLES.len()]>::default();
        let read = future::join_all(VARIABLES.map(value)).await;
        for (value, read) in values.iter_mut().zip(read) {
            *value = read?;
        }
        let config = Config::parse(values)?;
        let spool_limit = match H::POLICY {
            Policy::LongLived => config::spool_limit(&value(SPOOL_LIMIT).await?)?,
            Policy::PerRequest => 0,
        };
        let redis = Redis::new(&host, &config);
        let [spool, background] = [(); 2].map(|()| Spool::new(&host, spool_limit, &config));
        let instance = Rc::new(Self {
            counters: Counters::new(config.keys.clone(), config.window_lengths.clone(), config.counter_limit),
            changes: Cell::new(0),
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
        if H::POLICY == Policy::LongLived {
            instance.look_into_spool();
        }
        Ok(instance)
    }

    /// Drains what may be left in the spool into Redis, in the background.
    pub fn look_into_spool(self: &Rc<Self>) {
        self.host.spawn(look_into_spool(self.clone()));
    }

    /// Returns the open main window.
    pub fn window(&self) -> Window {
        self.config.window_lengths.main().window_at_ms(self.host.now_ms())
    }

    /// Registers a named counter for the reporter, once in each main window.
    async fn register_counter(&self, counter_window: &CounterWindow) -> Result<Option<Limit>, RedisError> {
        let CounterWindow { state, window } = counter_window;
        let limit = self
            .redis
            .register_counter(&state.keys, &self.config.window_lengths, false)
            .await?;
        if limit.is_none() {
            state.registered.set(Some(*window));
        }
        Ok(limit)
    }

    /// Records the id and, in parallel, the callback job.
    ///
    /// The answer is `ok` when each is in Redis or in the spool.
    pub async fn record(self: &Rc<Self>, counter_window: &CounterWindow, id: Id, callback: Option<Callback>) -> Answer {
        let job = callback.map(|Callback { endpoint, method }| CallbackJob {
            endpoint,
            method: method.unwrap_or(self.config.callback_method),
            window: counter_window.window,
            counter: counter_window.state.keys.counter().cloned(),
            revision: None,
        });
        if H::POLICY == Policy::PerRequest {
            let recorded = self.record_at_once(counter_window, id, job.as_ref()).await;
            return self.answers(counter_window, id, recorded)[0];
        }
        let recorded = match job {
            None => self.record_id(counter_window, id).await,
            Some(job) => self.record_both(counter_window, id, &job).await,
        };
        let answers = self.answers(counter_window, id, recorded);
        self.note(counter_window, answers);
        answers[0]
    }

    /// Records the id, the job and the outcome in the statistics, in one round trip.
    async fn record_at_once(
        self: &Rc<Self>,
        counter_window: &CounterWindow,
        id: Id,
        job: Option<&CallbackJob>,
    ) -> Recorded<Answers> {
        let recorded = async {
            if counter_window.must_be_registered()
                && let Some(limit) = self.register_counter(counter_window).await?
            {
                return Ok(in_all(Err(NotCounted::Limited(limit))));
            }
            self.redis.record(counter_window, id, job).await
        };
        recorded.await.map_err(|error| {
            if error == RedisError::TooManyJobs {
                // Redis is reachable, so the statistics can be recorded there.
                self.note(counter_window, in_all(Err(NotCounted::Unavailable)));
            }
            Rc::new(NotRecorded::Redis(error))
        })
    }

    /// Records an id and a job.
    ///
    /// It records both in parallel, unless one of them may be refused: then the other is not
    /// recorded either.
    async fn record_both(
        self: &Rc<Self>,
        counter_window: &CounterWindow,
        id: Id,
        job: &CallbackJob,
    ) -> Recorded<Answers> {
        if self.config.endpoint_limit.is_some() {
            // If the id then exceeds a limit as well, its job reports the count nevertheless.
            return match self.record_job(job).await? {
                Some(limit) => Ok(in_all(Err(NotCounted::Limited(limit)))),
                None => self.record_id(counter_window, id).await,
            };
        }
        if self.config.window_limit.is_some() {
            let answers = self.record_id(counter_window, id).await?;
            if answers[0].is_ok() {
                self.record_job(job).await?;
            }
            return Ok(answers);
        }
        let (answers, job) = future::join(self.record_id(counter_window, id), self.record_job(job)).await;
        job.and(answers)
    }

    /// Records ids, at most as many as are recorded together.
    pub async fn record_many(self: &Rc<Self>, counter_window: &CounterWindow, ids: &[Id]) -> Vec<Answer> {
        let recorded = self.record_ids(counter_window, ids, None).await;
        let answers = ids.iter().zip(recorded).map(|(id, recorded)| {
            let answers = self.answers(counter_window, *id, recorded);
            // If Redis is unreachable, a `PerRequest` instance would only ask it once more.
            if H::POLICY == Policy::LongLived || answers[0] != Err(NotCounted::Unavailable) {
                self.note(counter_window, answers);
            }
            answers[0]
        });
        answers.collect()
    }

    /// Returns the answers about an id, and logs the first, which the client gets.
    fn answers(&self, counter_window: &CounterWindow, id: Id, recorded: Recorded<Answers>) -> Answers {
        match recorded {
            Ok(answers) => {
                match answers[0] {
                    Ok(outcome) if self.config.log == Log::All => {
                        println!(
                            "verve: id {id} {} in window {}",
                            outcome.as_str(),
                            counter_window.window
                        );
                    }
                    Ok(_) => {}
                    Err(error) => self.log.refusal(&format!("id {id} not recorded: {error}")),
                }
                answers
            }
            Err(error) => {
                self.log.refusal(&format!("id {id} not recorded: {error}"));
                in_all(Err(NotCounted::Unavailable))
            }
        }
    }

    /// Records a callback job, unless it exceeds a limit.
    async fn record_job(&self, job: &CallbackJob) -> Recorded<Option<Limit>> {
        let command = self.add_job(job);
        let redis = match self.jobs.enter(|| self.host.monotonic_ms(), OPEN_MS) {
            CircuitState::Open => RedisError::TooManyJobs,
            CircuitState::Closed | CircuitState::HalfOpen => {
                match self.redis.add_job(&self.config.keys, job, &command).await {
                    Ok(beyond) => {
                        self.jobs_added.set(true);
                        return Ok(beyond);
                    }
                    Err(redis) => redis,
                }
            }
        };
        let spooled = self.in_time(self.spool.add_command(command)).await;
        self.spooled(redis, spooled)?;
        Ok(None)
    }

    /// Returns the command that adds a callback job.
    fn add_job(&self, job: &CallbackJob) -> Vec<String> {
        let mut command = vec!["XADD".to_owned(), self.config.keys.callbacks(), "*".to_owned()];
        for (field, value) in job.to_fields() {
            command.extend([field.to_owned(), value]);
        }
        command
    }

    /// Notes that something is in the spool instead of Redis, or that this failed too.
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

    /// Notifies other instances that a node is unreachable.
    ///
    /// If this fails, they find out themselves.
    async fn mark_down(&self, node: &Node<H>) {
        let _ = self.background.mark(&node.name(), self.host.now_ms() + OPEN_MS).await;
    }

    /// Notifies other instances that a node is reachable again.
    ///
    /// Does nothing if they were not notified that it is unreachable.
    async fn mark_up(&self, node: &Node<H>) {
        if node.marked_down_until.replace(0) != 0 {
            let _ = self.background.unmark(&node.name()).await;
        }
    }

    /// Waits for the spool, for at most [`SPOOL_TIMEOUT`].
    async fn in_time(&self, spooling: impl Future<Output = Result<(), SpoolError>>) -> Result<(), SpoolError> {
        let spooled = self.spool_limit.within(Box::pin(spooling)).await;
        spooled.unwrap_or_else(|| {
            Err(SpoolError::NoAnswer {
                within_ms: SPOOL_TIMEOUT.as_millis() as u64,
            })
        })
    }
}
