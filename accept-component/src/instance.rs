//! What one instance of the component keeps between requests. It makes requests faster; none depends on it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use futures::future;
use spin_sdk::time::sleep;
use spin_sdk::variables;
use spin_sdk::wasip3::clocks::system_clock;
use verve_protocol::{CallbackJob, Window};
use wit_bindgen::spawn;

use crate::answer::{Answer, Outcome};
use crate::config::{Config, Log, VARIABLES};
use crate::once::Once;
use crate::redis::Server;
use crate::request::{Accept, Callback};
use crate::stats::{FLUSH_AFTER, Stats};

/// How soon a request looks again for what another one is making.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

thread_local! {
    static INSTANCE: Rc<Once<Rc<Instance>, String>> = Rc::default();
}

/// Parsed variables, open connections and unflushed counts.
struct Instance {
    config: Config,
    servers: Vec<Server>,
    stats: Stats,
    /// When an error was last logged, in Unix seconds: a Redis that is down is not news with each request.
    last_error: Cell<u64>,
}

/// Answers a GET on the route.
pub async fn answer(path_with_query: &str) -> Answer {
    let slot = INSTANCE.with(Rc::clone);
    let instance = match slot.get(load, look_again).await {
        Ok(instance) => instance,
        Err(error) => {
            eprintln!("verve: {error}");
            return Answer::Unavailable;
        }
    };
    let window = instance.config.window_length.window_at_ms(now_ms());
    let answer = match Accept::parse(path_with_query) {
        Ok(accept) => instance.record(window, accept).await,
        Err(bad) => Answer::BadRequest(bad),
    };
    if instance.stats.count(window, answer) {
        spawn(flush_later(instance));
    }
    answer
}

async fn load() -> Result<Rc<Instance>, String> {
    let mut values = <[String; VARIABLES.len()]>::default();
    let got = future::join_all(VARIABLES.map(variables::get)).await;
    for ((value, got), name) in values.iter_mut().zip(got).zip(VARIABLES) {
        *value = got.map_err(|error| format!("variable {name}: {error}"))?;
    }
    let config = Config::parse(values)?;
    let servers = config.redis_urls.as_slice().iter();
    let servers = servers
        .map(|url| Server::new(url.clone(), config.redis_timeout))
        .collect();
    Ok(Rc::new(Instance {
        config,
        servers,
        stats: Stats::default(),
        last_error: Cell::new(0),
    }))
}

impl Instance {
    /// Records the id and, at the same time, the callback job. `ok` is answered when both are in Redis.
    async fn record(&self, window: Window, Accept { id, callback }: Accept) -> Answer {
        let keys = &self.config.keys;
        let server = &self.servers[id.shard(self.servers.len())];
        let recorded = match callback {
            None => server.add_id(keys, window, id).await,
            Some(Callback { endpoint, method }) => {
                let method = method.unwrap_or(self.config.callback_method);
                let job = CallbackJob {
                    endpoint,
                    method,
                    window,
                    revision: None,
                };
                let (outcome, job) =
                    future::join(server.add_id(keys, window, id), self.servers[0].add_job(keys, &job)).await;
                job.and(outcome)
            }
        };
        match recorded {
            Ok(outcome) => {
                if self.config.log == Log::All {
                    let outcome = if outcome == Outcome::New { "new" } else { "duplicate" };
                    eprintln!("verve: id {id} {outcome} in window {window}");
                }
                Answer::Recorded(outcome)
            }
            Err(error) => {
                self.log_error(&format!("id {id} not recorded: {error}"));
                Answer::Unavailable
            }
        }
    }

    /// Logs an error, at most one a second.
    fn log_error(&self, error: &str) {
        let now = now_ms() / 1000;
        if self.config.log >= Log::Error && self.last_error.replace(now) != now {
            eprintln!("verve: {error}");
        }
    }
}

/// Flushes the counts, after a while in which those of more responses have come together.
async fn flush_later(instance: Rc<Instance>) {
    sleep(FLUSH_AFTER).await;
    for (window, counts) in instance.stats.take() {
        if let Err(error) = instance.servers[0]
            .add_counts(&instance.config.keys, window, &counts)
            .await
        {
            instance.log_error(&format!("statistics not flushed: {error}"));
            instance.stats.put_back(window, counts);
        }
    }
}

/// The pause of those who wait for what another request is making.
pub async fn look_again() {
    sleep(LOOK_AGAIN).await;
}

/// The host's clock, in milliseconds since the Unix epoch.
fn now_ms() -> u64 {
    let now = system_clock::now();
    u64::try_from(now.seconds).unwrap_or_default() * 1000 + u64::from(now.nanoseconds / 1_000_000)
}
