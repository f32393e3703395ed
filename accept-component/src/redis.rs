//! Recording in Redis: one connection per server, kept by the instance and shared by its requests.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use futures::future::{self, Either};
use spin_sdk::redis::{Connection, Error, RedisParameter};
use spin_sdk::time::sleep;
use verve_protocol::keys::UNREPORTED_SECONDS;
use verve_protocol::{CallbackJob, Id, Keys, RedisUrl, Window};

use crate::answer::Outcome;
use crate::instance::look_again;
use crate::once::Once;
use crate::stats::Counts;

/// One Redis server.
pub struct Server {
    url: RedisUrl,
    timeout: Duration,
    connection: Once<Rc<Connection>, String>,
    /// The start of the last window whose set of ids is known to have an expiry.
    expiring: Cell<Option<u64>>,
}

impl Server {
    /// The server at `url`; connects when first used. `timeout` is for one attempt, connecting included.
    pub fn new(url: RedisUrl, timeout: Duration) -> Self {
        Self {
            url,
            timeout,
            connection: Once::default(),
            expiring: Cell::new(None),
        }
    }

    /// Records an id in a window.
    pub async fn add_id(&self, keys: &Keys, window: Window, id: Id) -> Result<Outcome, String> {
        let (key, member) = (keys.ids(window), [id.to_string()]);
        let added = self
            .twice(async |connection| connection.sadd(&key, &member).await)
            .await?;
        if self.expiring.replace(Some(window.start())) != Some(window.start()) && self.expire(&key).await.is_err() {
            // The id is recorded all the same; the next one sets the expiry.
            self.expiring.set(None);
        }
        Ok(if added == 0 { Outcome::Duplicate } else { Outcome::New })
    }

    /// Appends a callback job to the stream.
    pub async fn add_job(&self, keys: &Keys, job: &CallbackJob) -> Result<(), String> {
        let mut arguments = vec![text(keys.callbacks()), text("*")];
        for (field, value) in job.to_fields() {
            arguments.extend([text(field), text(value)]);
        }
        self.twice(async |connection| connection.execute("XADD", arguments.clone()).await)
            .await?;
        Ok(())
    }

    /// Adds counts to a window's statistics. Tried once: a repeated increment may count twice.
    pub async fn add_counts(&self, keys: &Keys, window: Window, counts: &Counts) -> Result<(), String> {
        let key = keys.stats(window);
        self.once(async |connection| {
            let increments = counts
                .iter()
                .map(|(field, n)| connection.execute("HINCRBY", [text(&key), text(*field), RedisParameter::Int64(*n)]));
            future::try_join_all(increments).await.map(drop)
        })
        .await?;
        // The counts are in, so this is no failure of theirs; the next flush sets the expiry.
        let _ = self.expire(&key).await;
        Ok(())
    }

    /// Gives a key its expiry unless it has one: the reporter may have set a shorter one.
    async fn expire(&self, key: &str) -> Result<(), String> {
        let seconds = RedisParameter::Int64(UNREPORTED_SECONDS.cast_signed());
        self.once(async |connection| {
            connection
                .execute("EXPIRE", [text(key), seconds.clone(), text("NX")])
                .await
        })
        .await
        .map(drop)
    }

    /// Runs an idempotent command, again on a fresh connection if it fails.
    async fn twice<T>(&self, command: impl AsyncFn(&Connection) -> Result<T, Error>) -> Result<T, String> {
        match self.once(&command).await {
            Ok(value) => Ok(value),
            Err(first) => self.once(&command).await.map_err(|second| {
                if first == second {
                    first
                } else {
                    format!("{first}; on a fresh connection: {second}")
                }
            }),
        }
    }

    /// Runs a command within the timeout. A connection that failed, or was too slow, is given up.
    async fn once<T>(&self, command: impl AsyncFn(&Connection) -> Result<T, Error>) -> Result<T, String> {
        let used = Cell::new(None);
        let attempt = async {
            let connection = self.connection.get(async || self.open().await, look_again).await?;
            used.set(Some(connection.clone()));
            command(&connection).await.map_err(|error| describe(&error))
        };
        let result = match future::select(Box::pin(attempt), Box::pin(sleep(self.timeout))).await {
            Either::Left((result, _)) => result,
            Either::Right(_) => Err(format!("no answer within {} ms", self.timeout.as_millis())),
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
        Error::InvalidAddress => "the address is invalid or not among allowed_outbound_hosts".to_owned(),
        Error::TooManyConnections => "too many open connections".to_owned(),
        Error::TypeError => "the answer has an unexpected type".to_owned(),
        Error::Other(message) => message.clone(),
    }
}
