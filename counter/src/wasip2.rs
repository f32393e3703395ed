//! The counter of components for WASI 0.2, which every Spin since 2.0 can run. It answers as the other one does.
//!
//! An instance serves one request there, and each call of the host blocks it. So there is nothing to keep, nothing to share, and no
//! spool; what one request asks of Redis is one script, also of many ids.

mod redis;

use std::time::SystemTime;

use verve_protocol::keys::stats;
use verve_protocol::{CallbackJob, CounterName, Id, Window};

use crate::answer::{Answer, Limit, Outcome};
use crate::batches::MOST;
use crate::callback::Callback;
use crate::config::{self, Config, Log, VARIABLES};
use crate::failures;
use bindings::fermyon::spin::variables;
use redis::{Redis, Unrecorded};

#[allow(unsafe_code, missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "verve:accept/counter-wasip2",
        generate_all,
    });
}

/// A counter of unique ids, which the application's variables describe.
pub struct Counter {
    config: Config,
}

/// What the statistics are to be told of a request. Best after its response, since they are nothing to wait for.
#[must_use = "not in the statistics until it is told"]
pub struct Note<'a> {
    counter: &'a Counter,
    window: Window,
    /// Nothing where Redis knows by what it has recorded.
    outcome: Option<&'static str>,
}

impl Note<'_> {
    /// Tells it.
    pub fn tell(self) {
        if let Some(outcome) = self.outcome {
            // Statistics alone, of a request that was not recorded.
            let _ = Redis::new(&self.counter.config, self.window).note(&redis::Note::of(outcome));
        }
    }
}

impl Counter {
    /// The counter.
    ///
    /// # Errors
    /// If a variable is not there, or not valid: a line that names it and says what was expected. It shows no password.
    pub fn get() -> Result<Self, String> {
        let mut values = <[String; VARIABLES.len()]>::default();
        for (value, name) in values.iter_mut().zip(VARIABLES) {
            *value = match (variables::get(name), config::when_undefined(name)) {
                (Ok(value), _) => value,
                (Err(variables::Error::Undefined(_)), Some(default)) => default.to_owned(),
                (Err(error), _) => return Err(format!("variable {name}: {error}")),
            };
        }
        Config::parse(values).map(|config| Self { config })
    }

    /// Another counter, by its name: what is added to it is counted and reported by itself. The counter that has no name, from [`Counter::get`], is the
    /// one of Verve's own route. A namespace has at most [`MAX_COUNTERS`](verve_protocol::counter_name::MAX_COUNTERS) counters with a name; what is
    /// added to one more is answered [`Limit::Counters`].
    #[must_use]
    pub fn open(&self, name: CounterName) -> Self {
        let mut config = self.config.clone();
        config.keys = config.keys.named(name);
        Self { config }
    }

    /// Counts an id in the window that is open now, and has the reporter call somebody with the window's count, if that is asked for. Whatever
    /// fails after it is answered [`Answer::Recorded`], it is counted once.
    pub fn add(&self, id: Id, callback: Option<Callback>) -> (Answer, Note<'_>) {
        let window = self.window();
        let (answer, outcome) = self.record(window, id, callback);
        (answer, self.note(window, outcome))
    }

    /// Counts ids in the window that is open now, those of a partition at once, and answers what became of each, in their order.
    pub fn add_many(&self, ids: &[Id]) -> Vec<Answer> {
        let window = self.window();
        let redis = Redis::new(&self.config, window);
        let beyond = self.beyond(&redis);
        let of_all = beyond.map(|limit| limit.map(Answer::Limited)).transpose();
        let recorded = ids.chunks(MOST).flat_map(|ids| match &of_all {
            None => redis.record_many(ids),
            Some(of_all) => vec![of_all.clone(); ids.len()],
        });
        let told = ids.iter().zip(recorded).map(|(id, recorded)| {
            self.log(window, *id, recorded.as_ref().map_err(String::as_str));
            recorded.unwrap_or(Answer::Unavailable)
        });
        told.collect()
    }

    /// A request that had no valid id, for the statistics alone.
    pub fn count_invalid(&self) -> Note<'_> {
        self.note(self.window(), Some(stats::INVALID))
    }

    const fn note(&self, window: Window, outcome: Option<&'static str>) -> Note<'_> {
        Note {
            counter: self,
            window,
            outcome,
        }
    }

    /// The window that is open now.
    fn window(&self) -> Window {
        self.config.window_length.window_at_ms(now_ms())
    }

    /// Records an id and its callback job. Answers also which outcome is to be noted yet.
    fn record(&self, window: Window, id: Id, callback: Option<Callback>) -> (Answer, Option<&'static str>) {
        let config = &self.config;
        let job = callback.map(|Callback { endpoint, method }| CallbackJob {
            endpoint,
            method: method.unwrap_or(config.callback_method),
            window,
            revision: None,
        });
        let redis = Redis::new(config, window);
        let recorded = match self.beyond(&redis) {
            Ok(None) => redis.record(id, job.as_ref()),
            Ok(Some(limit)) => Ok(Answer::Limited(limit)),
            Err(error) => Err(Unrecorded {
                error,
                may_be_noted: false,
            }),
        };
        self.log(
            window,
            id,
            recorded.as_ref().map_err(|unrecorded| unrecorded.error.as_str()),
        );
        match recorded {
            Ok(answer) => (answer, None),
            Err(Unrecorded { may_be_noted, .. }) => (Answer::Unavailable, may_be_noted.then_some(stats::FAILED)),
        }
    }

    /// Tells that this counter is in use, if it has a name. What comes of it says that it cannot be.
    fn beyond(&self, redis: &Redis<'_>) -> Result<Option<Limit>, String> {
        match self.config.keys.counter() {
            Some(name) => redis.tell_counter(name),
            None => Ok(None),
        }
    }

    /// Logs what became of an id.
    fn log(&self, window: Window, id: Id, recorded: Result<&Answer, &str>) {
        let log = self.config.log;
        match recorded {
            Ok(Answer::Recorded(outcome)) if log == Log::All => {
                println!("verve: id {id} {} in window {window}", outcome.as_str());
            }
            Ok(Answer::Limited(limit)) if log >= Log::Error => {
                eprintln!("verve: id {id} not recorded: {}", failures::beyond(*limit));
            }
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

impl Answer {
    /// The answer that the script tells, if it is one.
    fn told(said: &[u8]) -> Option<Self> {
        let outcomes = [Outcome::New, Outcome::Duplicate].map(|outcome| (outcome.as_str(), Self::Recorded(outcome)));
        let limits = [Limit::Window, Limit::Endpoint].map(|limit| (limit.as_str(), Self::Limited(limit)));
        let known = outcomes.into_iter().chain(limits);
        known
            .filter(|(name, _)| name.as_bytes() == said)
            .map(|(_, answer)| answer)
            .next()
    }
}
