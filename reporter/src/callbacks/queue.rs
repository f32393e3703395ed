//! The queue of callback jobs in Redis.
//!
//! - `{ns}:callbacks`, a stream: new jobs, added by the component and, for the fixed callback, when
//!   a report is recorded. Replicas read it as one consumer group; an entry stays pending with its
//!   reader until it is settled
//! - `{ns}:callbacks:retry`, a sorted set: jobs that failed, by the time at which they are due
//!   again. Taking a job only moves this time past the longest delivery, so that the job is due
//!   again if the replica dies. While the set is full, replicas take no new jobs
//! - `{ns}:callbacks:dead`, a stream: dead letters with their last error; only the newest are kept
//!
//! A job is in exactly one of the three at any time: each move is one script (`settle`). A job is
//! removed only when it is delivered. Delivery is at least once: if a replica dies between the
//! endpoint's answer and the settling, another replica delivers the job again.

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
/// How long a read waits for a new job.
const BLOCK: Duration = Duration::from_secs(1);

/// The queue, as one replica uses it.
pub struct Queue {
    store: Store,
    /// A separate connection, because a read blocks it.
    reading: Server,
    replica: String,
    window_length: WindowLength,
    /// The time in milliseconds after which an unsettled job can be taken again.
    claim_ms: u64,
}

/// The sources of jobs.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// The stream: jobs that no replica has taken yet.
    New,
    /// The sorted set: jobs that are due for another attempt.
    Waiting,
    /// The stream: jobs that a replica took and did not settle in time.
    ///
    /// Perhaps the replica has died.
    Abandoned,
}

impl Source {
    /// Returns whether failed jobs of this source are new to the sorted set.
    pub const fn fills_retry_set(self) -> bool {
        matches!(self, Self::New | Self::Abandoned)
    }

    /// Returns the delay after an empty answer.
    pub const fn look_every(self) -> Duration {
        match self {
            // The read itself waits.
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
    /// 1 for the first attempt.
    pub number: u32,
    location: Location,
}

/// Where a job is until it is settled.
#[derive(Clone, Debug)]
enum Location {
    /// In the stream, by the id of its entry.
    Stream(String),
    /// In the sorted set, by its member.
    Retry(String),
}

/// A member of the sorted set.
#[derive(Serialize, Deserialize)]
struct Waiting {
    /// The id of the former stream entry, which makes members of equal jobs different.
    id: String,
    /// The number of attempts made.
    attempts: u32,
    /// The error of the last attempt.
    error: String,
    /// The fields of the stream entry.
    job: BTreeMap<String, String>,
}

impl Queue {
    /// Creates the queue for the consumer `replica`.
    ///
    /// An unsettled job can be taken again after the time `claim`.
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

    /// Returns whether the sorted set has room for more jobs.
    pub async fn has_room(&self) -> RedisResult<bool> {
        let mut count = redis::cmd("ZCARD");
        count.arg(self.store.keys.callbacks_retry());
        Ok(self.store.redis().command::<u64>(&count).await? < MAX_RETRY)
    }

    /// Takes at most `limit` jobs.
    pub async fn take(&self, source: Source, limit: usize) -> RedisResult<Vec<Attempt>> {
        match source {
            Source::New => self.take_new(limit).await,
            Source::Waiting => self.take_waiting(limit).await,
            Source::Abandoned => self.claim_abandoned(limit).await,
        }
    }

    /// Waits up to [`BLOCK`] for the first job.
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
            let location = Location::Retry(member);
            match read {
                Some((job, number)) => attempts.push(Attempt { job, number, location }),
                None => self.bury_unreadable(&location, &BTreeMap::new()).await?,
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
            let location = Location::Stream(entry.id);
            match self.read_job(&fields) {
                Some(job) => attempts.push(Attempt {
                    job,
                    number: 1,
                    location,
                }),
                None => self.bury_unreadable(&location, &fields).await?,
            }
        }
        Ok(attempts)
    }

    fn read_job(&self, fields: &BTreeMap<String, String>) -> Option<CallbackJob> {
        CallbackJob::from_fields(self.window_length, |name| fields.get(name).map(String::as_str)).ok()
    }
}

impl Attempt {
    /// Returns the id of the first stream entry of the job, the same at each attempt.
    pub fn id(&self) -> String {
        self.location.id()
    }
}

impl Location {
    fn id(&self) -> String {
        match self {
            Self::Stream(id) => id.clone(),
            Self::Retry(member) => serde_json::from_str::<Waiting>(member)
                .map(|waiting| waiting.id)
                .unwrap_or_default(),
        }
    }
}
