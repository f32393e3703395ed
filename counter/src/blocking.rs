//! The counter of components for WASI 0.2, which every Spin since 2.0 can run. It answers as the other one does.
//!
//! An instance serves one request there, and each call of the host blocks it. So there is nothing to keep, nothing to share, and no
//! spool; what one request asks of Redis is one script, also of many ids.

mod redis;

use std::cell::RefCell;
use std::time::SystemTime;

use verve_counter_core::alike::MOST;
use verve_counter_core::answer::{Answer, Limit, NotCounted, Outcome};
use verve_counter_core::callback::Callback;
use verve_counter_core::config::{self, Config, InvalidVariable, Log, VARIABLES};
use verve_counter_core::redis_error::RedisError;
use verve_protocol::keys::stats;
use verve_protocol::{CallbackJob, CounterName, Id, Window};

use bindings::fermyon::spin::variables;
use redis::{Note, Redis, Unrecorded};

#[allow(unsafe_code, missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "verve:accept/counter-wasip2",
        generate_all,
    });
}

/// A counter of unique ids, which the application's variables describe. What the statistics are to be told yet of its requests they are told
/// when it is dropped: best after the response, since that is nothing to wait for.
pub struct Counter {
    config: Config,
    /// What came of requests, where Redis does not know by what it has recorded.
    untold: RefCell<Vec<(Window, &'static str)>>,
}

impl Drop for Counter {
    fn drop(&mut self) {
        for (window, outcome) in self.untold.take() {
            // Statistics alone, of a request that was not recorded.
            let _ = Redis::new(&self.config, window).note(&Note::of(outcome));
        }
    }
}

impl Counter {
    /// The counter.
    ///
    /// # Errors
    /// If a variable is not there, or not valid: it says which, and what was expected, and shows no password.
    pub fn get() -> Result<Self, InvalidVariable> {
        let mut values = <[String; VARIABLES.len()]>::default();
        for (value, name) in values.iter_mut().zip(VARIABLES) {
            let told = match variables::get(name) {
                Ok(value) => Ok(Some(value)),
                Err(variables::Error::Undefined(_)) => Ok(None),
                Err(error) => Err(error.to_string()),
            };
            *value = config::told(name, told)?;
        }
        Config::parse(values).map(Self::new)
    }

    const fn new(config: Config) -> Self {
        Self {
            config,
            untold: RefCell::new(Vec::new()),
        }
    }

    /// Another counter, by its name: what is added to it is counted and reported by itself. The counter that has no name, from [`Counter::get`], is the
    /// one of Verve's own route. A namespace has at most [`MAX_COUNTERS`](verve_protocol::counter_name::MAX_COUNTERS) counters with a name; what is
    /// added to one more is not counted: [`Limit::Counters`].
    #[must_use]
    pub fn open(&self, name: CounterName) -> Self {
        let mut config = self.config.clone();
        config.keys = config.keys.named(name);
        Self::new(config)
    }

    /// Counts an id in the window that is open now.
    ///
    /// # Errors
    /// If the id is not counted. After [`NotCounted::Unavailable`] it may be.
    pub fn add(&self, id: Id) -> Result<Outcome, NotCounted> {
        self.add_with_callback(id, None)
    }

    /// The same, and has the reporter call somebody, soon after, with the window's count as it is then: once for each time that this is asked for, also for an
    /// id that is there already. An outcome says that both are recorded. The count is the one of the counter that has no name, whichever this is.
    ///
    /// # Errors
    /// If one of both is not recorded. The other one may be.
    pub fn add_with_callback(&self, id: Id, callback: Option<Callback>) -> Result<Outcome, NotCounted> {
        let window = self.window();
        let recorded = self.record(window, id, callback);
        self.log(window, id, recorded.as_ref().map_err(|unrecorded| &unrecorded.error));
        recorded.unwrap_or_else(|Unrecorded { may_be_noted, .. }| {
            if may_be_noted {
                self.untold.borrow_mut().push((window, stats::FAILED));
            }
            Err(NotCounted::Unavailable)
        })
    }

    /// Counts ids in the window that is open now, those of a partition at once, and answers what became of each, in their order. Of equal ones the
    /// first may be new.
    #[must_use = "what is not counted has to be added again"]
    pub fn add_many(&self, ids: &[Id]) -> Vec<Result<Outcome, NotCounted>> {
        let window = self.window();
        let redis = Redis::new(&self.config, window);
        let beyond = self.beyond(&redis);
        let of_all = beyond
            .map(|limit| limit.map(|limit| Err(NotCounted::Limited(limit))))
            .transpose();
        let recorded = ids.chunks(MOST).flat_map(|ids| match &of_all {
            None => redis.record_many(ids),
            Some(of_all) => vec![of_all.clone(); ids.len()],
        });
        let told = ids.iter().zip(recorded).map(|(id, recorded)| {
            self.log(window, *id, recorded.as_ref());
            recorded.unwrap_or(Err(NotCounted::Unavailable))
        });
        told.collect()
    }

    /// Counts, in the statistics alone, a request that had no valid id.
    pub fn count_invalid(&self) {
        self.untold.borrow_mut().push((self.window(), stats::INVALID));
    }

    /// The window that is open now.
    fn window(&self) -> Window {
        self.config.window_length.window_at_ms(now_ms())
    }

    /// Records an id and its callback job.
    fn record(&self, window: Window, id: Id, callback: Option<Callback>) -> Result<Answer, Unrecorded> {
        let config = &self.config;
        let job = callback.map(|Callback { endpoint, method }| CallbackJob {
            endpoint,
            method: method.unwrap_or(config.callback_method),
            window,
            revision: None,
        });
        let redis = Redis::new(config, window);
        match self.beyond(&redis)? {
            None => redis.record(id, job.as_ref()),
            Some(limit) => Ok(Err(NotCounted::Limited(limit))),
        }
    }

    /// Tells that this counter is in use, if it has a name. What comes of it says that it cannot be.
    fn beyond(&self, redis: &Redis<'_>) -> Result<Option<Limit>, RedisError> {
        match self.config.keys.counter() {
            Some(name) => redis.tell_counter(name),
            None => Ok(None),
        }
    }

    /// Logs what became of an id.
    fn log(&self, window: Window, id: Id, recorded: Result<&Answer, &RedisError>) {
        let log = self.config.log;
        match recorded {
            Ok(Ok(outcome)) if log == Log::All => {
                println!("verve: id {id} {} in window {window}", outcome.as_str());
            }
            Ok(Err(error)) if log >= Log::Error => eprintln!("verve: id {id} not recorded: {error}"),
            Err(error) if log >= Log::Error => eprintln!("verve: id {id} not recorded: {error}"),
            _ => {}
        }
    }
}

/// The host's clock, in milliseconds since the Unix epoch.
fn now_ms() -> u64 {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    now.as_millis() as u64
}
