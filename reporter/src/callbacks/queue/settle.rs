//! What becomes of a job after an attempt: one script, so that it is in one place at any moment.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::{ErrorKind, RedisError, RedisResult, Script};
use verve_protocol::scripts::SETTLE;

use super::{Attempt, GROUP, Place, Queue, Waiting};

/// The most jobs in the retry set: with some 300 bytes each, a bound of 300 MB on Redis. While there are as many, replicas
/// take no new jobs; these wait in the stream, and beyond its own bound in the component's spool.
pub const MAX_RETRY: u64 = 1_000_000;
/// The most jobs in the dead stream: the newest. Older ones are dropped, with a warning.
pub const MAX_DEAD: u64 = 100_000;

/// What becomes of a job after an attempt.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Delivered.
    Done,
    /// Not tried: its host has as many calls as it may.
    Deferred { after: Duration },
    /// To be tried again.
    Again { after: Duration, error: String },
    /// Given up on.
    Dead { error: String },
}

impl Queue {
    /// Moves a job to where the verdict wants it.
    pub async fn settle(&self, attempt: &Attempt, verdict: &Verdict) -> RedisResult<()> {
        let fields = attempt.job.to_fields();
        match verdict {
            Verdict::Done => self.move_job(&attempt.place, &["done"]).await,
            Verdict::Deferred { after } => self.wait(attempt, attempt.number - 1, *after, "not tried yet").await,
            Verdict::Again { after, error } => self.wait(attempt, attempt.number, *after, error).await,
            Verdict::Dead { error } => {
                let fields = fields.iter().map(|(name, value)| (*name, value.as_str()));
                self.bury(&attempt.place, fields, error, attempt.number).await
            }
        }
    }

    /// Moves a job to the retry set, with so many attempts made.
    async fn wait(&self, attempt: &Attempt, attempts: u32, after: Duration, error: &str) -> RedisResult<()> {
        let fields = attempt.job.to_fields().into_iter();
        let waiting = Waiting {
            id: attempt.place.id(),
            attempts,
            error: error.to_owned(),
            job: fields.map(|(name, value)| (name.to_owned(), value)).collect(),
        };
        let member = serde_json::to_string(&waiting)
            .map_err(|error| RedisError::from((ErrorKind::Client, "unwritable job", error.to_string())))?;
        let (wait, most) = (after.as_millis().to_string(), MAX_RETRY.to_string());
        self.move_job(&attempt.place, &["again", &member, &wait, &most]).await
    }

    /// What is no job, neither the component nor the reporter wrote: kept for the operator to see.
    pub(super) async fn bury_unreadable(&self, place: &Place, fields: &BTreeMap<String, String>) -> RedisResult<()> {
        tracing::error!("a callback job is not readable, or of another window length, and given up on");
        let fields = fields.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let member = match place {
            Place::Retry(member) => Some(("job", member.as_str())),
            Place::Stream(_) => None,
        };
        let error = "not readable, or of another window length";
        self.bury(place, fields.chain(member), error, 0).await
    }

    async fn bury<'a>(
        &self,
        place: &Place,
        fields: impl IntoIterator<Item = (&'a str, &'a str)>,
        error: &str,
        attempts: u32,
    ) -> RedisResult<()> {
        let (most, attempts) = (MAX_DEAD.to_string(), attempts.to_string());
        let mut verdict = vec!["dead", &most];
        verdict.extend(fields.into_iter().flat_map(|(name, value)| [name, value]));
        verdict.extend(["error", error, "attempts", &attempts]);
        self.move_job(place, &verdict).await
    }

    async fn move_job(&self, place: &Place, verdict: &[&str]) -> RedisResult<()> {
        let keys = &self.store.keys;
        let script = Script::new(SETTLE);
        let mut settle = script.key(keys.callbacks());
        settle.key(keys.callbacks_retry()).key(keys.callbacks_dead());
        match place {
            Place::Stream(id) => settle.arg("stream").arg(id),
            Place::Retry(member) => settle.arg("retry").arg(member),
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
