//! Moves a job after an attempt, in one script: it is always in exactly one place.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::{ErrorKind, RedisError, RedisResult, Script};
use verve_protocol::scripts::SETTLE;

use super::{Attempt, GROUP, Location, Queue, Waiting};

/// The maximum number of jobs in the retry set.
///
/// With about 300 bytes each, they take at most 300 MB in Redis. While the set is full, replicas
/// take no new jobs. These wait in the stream, and beyond the limit of the stream in the
/// component's spool.
pub const MAX_RETRY: u64 = 1_000_000;
/// The maximum number of dead letters.
///
/// The oldest ones beyond it are dropped, with a warning.
pub const MAX_DEAD: u64 = 100_000;

/// The outcome of an attempt.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// The job is delivered.
    Done,
    /// The job was not tried, because its host has no free slot.
    Deferred { after: Duration },
    /// The job is due for another attempt.
    Again { after: Duration, error: String },
    /// The job is given up.
    Dead { error: String },
}

impl Queue {
    /// Moves a job according to the verdict.
    pub async fn settle(&self, attempt: &Attempt, verdict: &Verdict) -> RedisResult<()> {
        let fields = attempt.job.to_fields();
        match verdict {
            Verdict::Done => self.move_job(&attempt.location, &["done"]).await,
            Verdict::Deferred { after } => self.wait(attempt, attempt.number - 1, *after, "not tried yet").await,
            Verdict::Again { after, error } => self.wait(attempt, attempt.number, *after, error).await,
            Verdict::Dead { error } => {
                let fields = fields.iter().map(|(name, value)| (*name, value.as_str()));
                self.bury(&attempt.location, fields, error, attempt.number).await
            }
        }
    }

    /// Moves a job to the retry set, with this number of attempts made.
    async fn wait(&self, attempt: &Attempt, attempts: u32, after: Duration, error: &str) -> RedisResult<()> {
        let fields = attempt.job.to_fields().into_iter();
        let waiting = Waiting {
            id: attempt.location.id(),
            attempts,
            error: error.to_owned(),
            job: fields.map(|(name, value)| (name.to_owned(), value)).collect(),
        };
        let member = serde_json::to_string(&waiting)
            .map_err(|error| RedisError::from((ErrorKind::Client, "unwritable job", error.to_string())))?;
        let (wait, most) = (after.as_millis().to_string(), MAX_RETRY.to_string());
        self.move_job(&attempt.location, &["again", &member, &wait, &most])
            .await
    }

    /// Moves an entry that is not a valid job to the dead letters.
    ///
    /// The operator can see it there. Neither the component nor the reporter wrote it as a job of
    /// this window length.
    pub(super) async fn bury_unreadable(
        &self,
        location: &Location,
        fields: &BTreeMap<String, String>,
    ) -> RedisResult<()> {
        tracing::error!("a callback job is not readable, or of another window length, and given up on");
        let fields = fields.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let member = match location {
            Location::Retry(member) => Some(("job", member.as_str())),
            Location::Stream(_) => None,
        };
        let error = "not readable, or of another window length";
        self.bury(location, fields.chain(member), error, 0).await
    }

    async fn bury<'a>(
        &self,
        location: &Location,
        fields: impl IntoIterator<Item = (&'a str, &'a str)>,
        error: &str,
        attempts: u32,
    ) -> RedisResult<()> {
        let (most, attempts) = (MAX_DEAD.to_string(), attempts.to_string());
        let mut verdict = vec!["dead", &most];
        verdict.extend(fields.into_iter().flat_map(|(name, value)| [name, value]));
        verdict.extend(["error", error, "attempts", &attempts]);
        self.move_job(location, &verdict).await
    }

    async fn move_job(&self, location: &Location, verdict: &[&str]) -> RedisResult<()> {
        let keys = &self.store.keys;
        let script = Script::new(SETTLE);
        let mut settle = script.key(keys.callbacks());
        settle.key(keys.callbacks_retry()).key(keys.callbacks_dead());
        match location {
            Location::Stream(id) => settle.arg("stream").arg(id),
            Location::Retry(member) => settle.arg("retry").arg(member),
        };
        match self.store.redis().script::<i64>(settle.arg(GROUP).arg(verdict)).await? {
            0 => {}
            -1 => tracing::debug!("no room for another attempt: the job stays in the stream until there is"),
            -2 => tracing::debug!("another replica has settled this job already"),
            dropped => tracing::warn!(
                dropped,
                "the oldest dead callbacks were dropped: {MAX_DEAD} are kept; see `verve-reporter dead --help`"
            ),
        }
        Ok(())
    }
}
