//! All of a request in one trip: for instances that serve one request each.

use verve_protocol::keys::{MAX_QUEUED_JOBS, indexed};
use verve_protocol::scripts::RECORD;
use verve_protocol::{CallbackJob, Id};

use super::{Redis, text};
use crate::answer::{Answer, Limit, NotCounted, statistic, told};
use crate::counted::Place;
use crate::limits::endpoints_seconds;
use crate::ports::Host;
use crate::redis_error::{RedisError, Refusal};
use crate::reply::Reply;
use crate::stats::kept_seconds;

/// What Redis is told of a request.
#[derive(Clone, Copy, Default)]
struct Note<'a> {
    /// The id, if it is to be recorded.
    id: Option<Id>,
    /// What came of it, if that is known.
    outcome: Option<&'a str>,
    job: Option<&'a CallbackJob>,
}

impl<H: Host> Redis<H> {
    /// Records an id and a callback job, and what came of it in the statistics.
    pub async fn record(&self, place: &Place, id: Id, job: Option<&CallbackJob>) -> Result<Answer, RedisError> {
        let all = Note {
            id: Some(id),
            job,
            ..Note::default()
        };
        if self.config.redis_urls.as_slice().len() == 1 {
            match self.note(place, all).await {
                Err(error) if error.refusal() == Some(Refusal::CrossSlot) => {}
                said => return refused_or(&said?),
            }
        }
        // In a cluster the id is elsewhere.
        let mut rest = Note { job, ..Note::default() };
        if job.is_some() && self.config.endpoint_limit.is_some() {
            // First, so that an id whose job is refused is not recorded.
            let said = self.note(place, rest).await?;
            if !said.is_empty() {
                return refused_or(&said);
            }
            rest.job = None;
        }
        let key = place.ids(id.partition(self.config.partitions));
        let added = self.add_at_once(&key, &[id.to_string()]).await?;
        let [answer] = added[..] else {
            return Err(RedisError::UnexpectedLength(key));
        };
        if answer.is_err() {
            // Nothing more is recorded of what is beyond a limit.
            rest.job = None;
        }
        rest.outcome = Some(statistic(answer));
        let said = self.note(place, rest).await?;
        match answer {
            Ok(_) => refused_or(&said),
            Err(_) => Ok(Err(NotCounted::Limited(Limit::Window))),
        }
    }

    /// Tells Redis of a request, and answers what that has made of it.
    async fn note(&self, place: &Place, note: Note<'_>) -> Result<String, RedisError> {
        let (keys, window) = (&place.counted.keys, place.window);
        let stats = keys.stats(window);
        // Without an id its set is not touched, but has to be where the others are.
        let ids = note.id.map(|id| place.ids(id.partition(self.config.partitions)));
        let ids = ids.unwrap_or_else(|| stats.clone());
        let mut arguments = [RECORD, "5", &ids, &stats, &keys.callbacks(), &keys.endpoints(window)]
            .map(text)
            .to_vec();
        arguments.push(keys.windows(window.length()));
        let mut say = |name: &str, value: Option<String>| {
            arguments.extend(value.into_iter().flat_map(|value| [text(name), value]));
        };
        let now_s = self.host.now_ms() / 1000;
        say("id", note.id.map(|id| id.to_string()));
        say("outcome", note.outcome.map(text));
        say("ends", Some(window.end().to_string()));
        say("waits", (self.config.wait_replicas > 0).then(|| text("1")));
        say("window", Some(indexed(window, self.config.partitions.count())));
        say("expiry", Some(kept_seconds(window, now_s).to_string()));
        say("limit", self.config.window_limit.map(|limit| limit.to_string()));
        if let Some(job) = note.job {
            say("endpoint", Some(text(job.endpoint.as_str())));
            say("most", Some(MAX_QUEUED_JOBS.to_string()));
            say(
                "endpoint_limit",
                self.config.endpoint_limit.map(|limit| limit.to_string()),
            );
            say("brief", Some(endpoints_seconds(window).to_string()));
        }
        let job: Vec<String> = note.job.map(job_words).unwrap_or_default();
        self.twice(&ids, async |via| {
            let again = if via.is_again {
                ["again", "1"].map(text).to_vec()
            } else {
                Vec::new()
            };
            let arguments = arguments.iter().cloned().chain(again).chain(job.iter().cloned());
            let replies = via.execute("EVAL", arguments).await?;
            // What there is to wait for, it has written.
            self.replicated(via, None).await?;
            match replies.into_iter().next() {
                Some(Reply::Text(said)) => Ok(said),
                _ => Err(RedisError::UnexpectedType),
            }
        })
        .await
    }
}

/// The end of the script's arguments.
fn job_words(job: &CallbackJob) -> Vec<String> {
    let fields = job.to_fields();
    let fields = fields.iter().flat_map(|(field, value)| [text(field), text(value)]);
    std::iter::once(text("job")).chain(fields).collect()
}

/// The answer that [`RECORD`] tells, or that there is no room for the job.
fn refused_or(said: &str) -> Result<Answer, RedisError> {
    told(said).ok_or(RedisError::TooManyJobs)
}
