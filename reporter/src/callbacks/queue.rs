//! The queue of callback jobs in Redis.
//!
//! - `ns:callbacks`, a stream: new jobs, by the component and, for the fixed callback, by the recording of a report. Replicas
//!   read it as one consumer group; an entry stays pending with its reader until it is settled
//! - `ns:callbacks:retry`, a sorted set: jobs that failed, by when they are due again. Taking one only moves its due time
//!   past the longest delivery, so that it comes back should its taker die. While it is full, nothing new is taken
//! - `ns:callbacks:dead`, a stream: jobs given up on, with their last error; the newest of them
//!
//! A job is in one of the three at any moment: each move is one script (`settle`). It is removed only once it is delivered.
//! Delivery is at least once: a replica that dies between the endpoint's answer and the settling leaves the job to another.

mod group;
mod settle;

use std::collections::BTreeMap;
use std::time::Duration;

use redis::streams::{StreamAutoClaimReply, StreamId, StreamReadReply};
use redis::{RedisResult, Script};
use serde::{Deserialize, Serialize};
use verve_protocol::scripts::TAKE_WAITING;
use verve_protocol::{CallbackJob, WindowLength};

use crate::clock::millis;
use crate::store::{Server, Store};
pub use settle::{MAX_RETRY, Verdict};

/// The consumer group of all replicas.
const GROUP: &str = "reporter";
/// How long reading waits for a new job.
const BLOCK: Duration = Duration::from_secs(1);

/// The queue, as seen by one replica.
pub struct Queue {
    store: Store,
    /// Reading blocks, so it has a connection of its own.
    reading: Server,
    replica: String,
    window_length: WindowLength,
    /// After how many milliseconds a job that somebody took is free again.
    claim_ms: u64,
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
    /// Whether its jobs go to the sorted set when they fail, and have not been there.
    pub const fn fills_retry_set(self) -> bool {
        matches!(self, Self::New | Self::Abandoned)
    }

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
    job: BTreeMap<String, String>,
}

impl Queue {
    /// The queue, read by the consumer `replica`. Jobs that somebody took are free again after the time `claim`.
    pub fn new(store: &Store, window_length: WindowLength, replica: String, claim: Duration) -> Self {
        let reading = store.redis().for_blocking(BLOCK);
        Self {
            store: store.clone(),
            reading,
            replica,
            window_length,
            claim_ms: millis(claim),
        }
    }

    /// Whether the sorted set takes more jobs.
    pub async fn has_room(&self) -> RedisResult<bool> {
        let mut count = redis::cmd("ZCARD");
        count.arg(self.store.keys.callbacks_retry());
        Ok(self.store.redis().command::<u64>(&count).await? < MAX_RETRY)
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
        read.arg("BLOCK").arg(millis(BLOCK));
        read.arg("STREAMS").arg(self.store.keys.callbacks()).arg(">");
        let reply: RedisResult<Option<StreamReadReply>> = self.reading.command(&read).await;
        let reply = self.with_group(reply).await?.flatten().unwrap_or_default();
        self.attempts(reply.keys.into_iter().flat_map(|key| key.ids)).await
    }

    async fn claim_abandoned(&self, limit: usize) -> RedisResult<Vec<Attempt>> {
        let mut claim = redis::cmd("XAUTOCLAIM");
        claim.arg(self.store.keys.callbacks()).arg(GROUP).arg(&self.replica);
        claim.arg(self.claim_ms).arg("0-0").arg("COUNT").arg(limit);
        let reply: RedisResult<StreamAutoClaimReply> = self.store.redis().command(&claim).await;
        let reply = self.with_group(reply).await?.unwrap_or_default();
        self.attempts(reply.claimed).await
    }

    async fn take_waiting(&self, limit: usize) -> RedisResult<Vec<Attempt>> {
        let script = Script::new(TAKE_WAITING);
        let mut take = script.key(self.store.keys.callbacks_retry());
        take.arg(self.claim_ms).arg(limit);
        let members: Vec<String> = self.store.redis().script(&take).await?;
        let mut attempts = Vec::with_capacity(members.len());
        for member in members {
            let waiting = serde_json::from_str::<Waiting>(&member).ok();
            let read = waiting.and_then(|waiting| Some((self.read_job(&waiting.job)?, waiting.attempts + 1)));
            let place = Place::Retry(member);
            match read {
                Some((job, number)) => attempts.push(Attempt { job, number, place }),
                None => self.bury_unreadable(&place, &BTreeMap::new()).await?,
            }
        }
        Ok(attempts)
    }

    async fn attempts(&self, entries: impl IntoIterator<Item = StreamId>) -> RedisResult<Vec<Attempt>> {
        let mut attempts = Vec::new();
        for entry in entries {
            let fields: BTreeMap<String, String> = entry
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

    fn read_job(&self, fields: &BTreeMap<String, String>) -> Option<CallbackJob> {
        CallbackJob::from_fields(self.window_length, |name| fields.get(name).map(String::as_str)).ok()
    }
}

impl Attempt {
    /// What tells its job from others, at each attempt: the id of the stream entry that it was first.
    pub fn id(&self) -> String {
        self.place.id()
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
