//! The queue of callback jobs in Redis.
//!
//! - `ns:callbacks`, a stream: new jobs, by the component and, for the fixed callback, by the recording of a report. Replicas
//!   read it as one consumer group; an entry stays pending with its reader until it is settled
//! - `ns:callbacks:retry`, a sorted set: jobs that failed, by when they are due again. Taking one only moves its due time
//!   past the longest delivery, so that it comes back should its taker die
//! - `ns:callbacks:dead`, a stream: jobs given up on, with their last error
//!
//! A job is in one of the three at any moment: each move is one transaction. It is removed only once it is delivered.
//! Delivery is at least once: a replica that dies between the endpoint's answer and the settling leaves the job to another.

use std::collections::HashMap;
use std::time::Duration;

use redis::streams::{StreamAutoClaimReply, StreamId, StreamReadReply};
use redis::{ErrorKind, Pipeline, RedisError, RedisResult, Script};
use serde::{Deserialize, Serialize};
use verve_protocol::{CallbackJob, WindowLength};

use super::deliver::CALL_TIMEOUT;
use crate::clock::now_ms;
use crate::store::{Server, Store};

/// The consumer group of all replicas.
const GROUP: &str = "reporter";
/// How long reading waits for a new job.
const BLOCK: Duration = Duration::from_secs(1);
/// After what time a job that somebody took is free again: longer than the longest delivery, with room for a slow Redis.
const CLAIM: Duration = Duration::from_secs(CALL_TIMEOUT.as_secs() * 3);

/// Takes due jobs of the sorted set, and moves them to when they are free again.
/// KEYS: retry. ARGV: now, when free again, how many.
const TAKE_WAITING: &str = r"
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])
for _, job in ipairs(due) do redis.call('ZADD', KEYS[1], 'XX', ARGV[2], job) end
return due";

/// The queue, as seen by one replica.
#[derive(Clone)]
pub struct Queue {
    store: Store,
    /// Reading blocks, so it has a connection of its own.
    reading: Server,
    replica: String,
    window_length: WindowLength,
}

/// Where jobs are taken from.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// The stream: jobs that nobody has taken yet.
    New,
    /// The sorted set: jobs that are due for another attempt.
    Waiting,
    /// The stream: jobs that a replica took and did not settle in time, since it died.
    Abandoned,
}

impl Source {
    /// How long to wait where there was no job.
    pub const fn look_every(self) -> Duration {
        match self {
            // Reading waits by itself.
            Self::New => Duration::ZERO,
            Self::Waiting => Duration::from_millis(100),
            Self::Abandoned => Duration::from_secs(5),
        }
    }
}

/// A job, taken for one attempt.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub job: CallbackJob,
    /// 1 for the first.
    pub number: u32,
    place: Place,
}

/// Where a job is until it is settled.
#[derive(Clone, Debug)]
enum Place {
    /// In the stream, by its entry's id.
    Stream(String),
    /// In the sorted set, by its member.
    Retry(String),
}

/// What becomes of a job after an attempt.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Delivered.
    Done,
    /// To be tried again.
    Again { after: Duration, error: String },
    /// Given up on.
    Dead { error: String },
}

/// A member of the sorted set.
#[derive(Serialize, Deserialize)]
struct Waiting {
    /// The id of the stream entry that it was: makes equal jobs different members.
    id: String,
    /// Attempts made.
    attempts: u32,
    /// Of the last attempt.
    error: String,
    /// The fields of the stream entry.
    job: HashMap<String, String>,
}

impl Queue {
    /// The queue, read by the consumer `replica`.
    pub fn new(store: &Store, window_length: WindowLength, replica: String) -> anyhow::Result<Self> {
        let reading = store.first().for_blocking(BLOCK)?;
        Ok(Self {
            store: store.clone(),
            reading,
            replica,
            window_length,
        })
    }

    /// Takes jobs, at most `limit`.
    pub async fn take(&self, source: Source, limit: usize) -> RedisResult<Vec<Attempt>> {
        match source {
            Source::New => self.take_new(limit).await,
            Source::Waiting => self.take_waiting(limit).await,
            Source::Abandoned => self.claim_abandoned(limit).await,
        }
    }

    /// Waits up to [`BLOCK`] for the first.
    async fn take_new(&self, limit: usize) -> RedisResult<Vec<Attempt>> {
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(GROUP).arg(&self.replica).arg("COUNT").arg(limit);
        read.arg("BLOCK")
            .arg(u64::try_from(BLOCK.as_millis()).unwrap_or(u64::MAX));
        read.arg("STREAMS").arg(self.store.keys.callbacks()).arg(">");
        let reply: RedisResult<Option<StreamReadReply>> = self.reading.command(&read).await;
        let reply = self.with_group(reply).await?.flatten().unwrap_or_default();
        self.attempts(reply.keys.into_iter().flat_map(|key| key.ids)).await
    }

    async fn claim_abandoned(&self, limit: usize) -> RedisResult<Vec<Attempt>> {
        let mut claim = redis::cmd("XAUTOCLAIM");
        claim.arg(self.store.keys.callbacks()).arg(GROUP).arg(&self.replica);
        claim
            .arg(u64::try_from(CLAIM.as_millis()).unwrap_or(u64::MAX))
            .arg("0-0")
            .arg("COUNT")
            .arg(limit);
        let reply: RedisResult<StreamAutoClaimReply> = self.store.first().command(&claim).await;
        let reply = self.with_group(reply).await?.unwrap_or_default();
        self.attempts(reply.claimed).await
    }

    async fn take_waiting(&self, limit: usize) -> RedisResult<Vec<Attempt>> {
        let now = now_ms();
        let script = Script::new(TAKE_WAITING);
        let mut take = script.key(self.store.keys.callbacks_retry());
        take.arg(now).arg(now + CLAIM.as_millis() as u64).arg(limit);
        let members: Vec<String> = self.store.first().script(&take).await?;
        let mut attempts = Vec::with_capacity(members.len());
        for member in members {
            let waiting = serde_json::from_str::<Waiting>(&member).ok();
            let read = waiting.and_then(|waiting| Some((self.read_job(&waiting.job)?, waiting.attempts + 1)));
            let place = Place::Retry(member);
            match read {
                Some((job, number)) => attempts.push(Attempt { job, number, place }),
                None => self.bury_unreadable(&place, &HashMap::new()).await?,
            }
        }
        Ok(attempts)
    }

    /// Moves a job to where the verdict wants it.
    pub async fn settle(&self, attempt: &Attempt, verdict: &Verdict) -> RedisResult<()> {
        let fields = attempt.job.to_fields();
        let mut moved = redis::pipe();
        moved.atomic();
        match verdict {
            Verdict::Done => {}
            Verdict::Again { after, error } => {
                let waiting = Waiting {
                    id: attempt.place.id(),
                    attempts: attempt.number,
                    error: error.clone(),
                    job: fields
                        .into_iter()
                        .map(|(name, value)| (name.to_owned(), value))
                        .collect(),
                };
                let due = now_ms() + after.as_millis() as u64;
                let member = serde_json::to_string(&waiting)
                    .map_err(|error| RedisError::from((ErrorKind::Client, "unwritable job", error.to_string())))?;
                moved.zadd(self.store.keys.callbacks_retry(), member, due).ignore();
            }
            Verdict::Dead { error } => {
                let fields = fields.iter().map(|(name, value)| (*name, value.as_str()));
                self.bury(&mut moved, fields, error, attempt.number);
            }
        }
        self.remove(&mut moved, &attempt.place);
        self.store.first().run(&moved).await
    }

    /// Takes this replica out of the group, if it owes nothing.
    pub async fn leave(&self) {
        let mut pending = redis::cmd("XPENDING");
        pending
            .arg(self.store.keys.callbacks())
            .arg(GROUP)
            .arg("-")
            .arg("+")
            .arg(1)
            .arg(&self.replica);
        if let Ok(none) = self.store.first().command::<Vec<redis::Value>>(&pending).await
            && none.is_empty()
        {
            let mut leave = redis::cmd("XGROUP");
            leave
                .arg("DELCONSUMER")
                .arg(self.store.keys.callbacks())
                .arg(GROUP)
                .arg(&self.replica);
            // A name that stays behind does no harm.
            let _ = self.store.first().command::<u64>(&leave).await;
        }
    }

    /// Makes the group where it is missing: on a new Redis, or one that came back without its data.
    async fn with_group<T>(&self, reply: RedisResult<T>) -> RedisResult<Option<T>> {
        match reply {
            Ok(reply) => Ok(Some(reply)),
            Err(error) if error.code() == Some("NOGROUP") => {
                let mut create = redis::cmd("XGROUP");
                create
                    .arg("CREATE")
                    .arg(self.store.keys.callbacks())
                    .arg(GROUP)
                    .arg("0")
                    .arg("MKSTREAM");
                match self.store.first().command::<()>(&create).await {
                    Err(error) if error.code() != Some("BUSYGROUP") => Err(error),
                    _ => Ok(None),
                }
            }
            Err(error) => Err(error),
        }
    }

    async fn attempts(&self, entries: impl IntoIterator<Item = StreamId>) -> RedisResult<Vec<Attempt>> {
        let mut attempts = Vec::new();
        for entry in entries {
            let fields: HashMap<String, String> = entry
                .map
                .keys()
                .filter_map(|name| Some((name.clone(), entry.get(name)?)))
                .collect();
            let place = Place::Stream(entry.id);
            match self.read_job(&fields) {
                Some(job) => attempts.push(Attempt { job, number: 1, place }),
                None => self.bury_unreadable(&place, &fields).await?,
            }
        }
        Ok(attempts)
    }

    fn read_job(&self, fields: &HashMap<String, String>) -> Option<CallbackJob> {
        CallbackJob::from_fields(self.window_length, |name| fields.get(name).map(String::as_str)).ok()
    }

    /// What is no job, neither the component nor the reporter wrote: kept for the operator to see.
    async fn bury_unreadable(&self, place: &Place, fields: &HashMap<String, String>) -> RedisResult<()> {
        tracing::error!("a callback job is not readable, or of another window length, and given up on");
        let mut moved = redis::pipe();
        moved.atomic();
        let mut shown: Vec<(&str, &str)> = fields
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        if let Place::Retry(member) = place {
            shown.push(("job", member));
        }
        self.bury(&mut moved, shown, "not readable, or of another window length", 0);
        self.remove(&mut moved, place);
        self.store.first().run(&moved).await
    }

    fn bury<'a>(
        &self,
        moved: &mut Pipeline,
        fields: impl IntoIterator<Item = (&'a str, &'a str)>,
        error: &str,
        attempts: u32,
    ) {
        let bury = moved.cmd("XADD").arg(self.store.keys.callbacks_dead()).arg("*");
        for (name, value) in fields {
            bury.arg(name).arg(value);
        }
        bury.arg("error").arg(error).arg("attempts").arg(attempts).ignore();
    }

    fn remove(&self, moved: &mut Pipeline, place: &Place) {
        match place {
            Place::Stream(id) => {
                moved.xack(self.store.keys.callbacks(), GROUP, &[id]).ignore();
                moved.xdel(self.store.keys.callbacks(), &[id]).ignore();
            }
            Place::Retry(member) => {
                moved.zrem(self.store.keys.callbacks_retry(), member).ignore();
            }
        }
    }
}

impl Place {
    fn id(&self) -> String {
        match self {
            Self::Stream(id) => id.clone(),
            Self::Retry(member) => serde_json::from_str::<Waiting>(member)
                .map(|waiting| waiting.id)
                .unwrap_or_default(),
        }
    }
}
