//! All of a request in one trip: for instances that serve one request each.

use verve_protocol::{CallbackJob, Id};

use super::Redis;
use super::scripts::{Told, record};
use crate::answer::{Answer, Limit, NotCounted, statistic, told};
use crate::counted::Place;
use crate::ports::Host;
use crate::redis_error::{RedisError, Refusal};
use crate::reply::Reply;

impl<H: Host> Redis<H> {
    /// Records an id and a callback job, and what came of it in the statistics.
    pub async fn record(&self, place: &Place, id: Id, job: Option<&CallbackJob>) -> Result<Answer, RedisError> {
        let (window_limit, endpoint_limit) = (self.config.window_limit, self.config.endpoint_limit);
        let all = Told {
            id: Some(id),
            outcome: None,
            job,
            window_limit,
            endpoint_limit,
            waits: self.config.wait_replicas > 0,
            partitions: self.config.partitions.count(),
            now_s: self.host.now_ms() / 1000,
        };
        if self.config.redis_urls.as_slice().len() == 1 {
            match self.tell(place, all).await {
                Err(error) if error.refusal() == Some(Refusal::CrossSlot) => {}
                said => return refused_or(&said?),
            }
        }
        // In a cluster the id is elsewhere.
        let mut rest = Told { id: None, ..all };
        if job.is_some() && endpoint_limit.is_some() {
            // First, so that an id whose job is refused is not recorded.
            let said = self.tell(place, rest).await?;
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
        let said = self.tell(place, rest).await?;
        match answer {
            Ok(_) => refused_or(&said),
            Err(_) => Ok(Err(NotCounted::Limited(Limit::Window))),
        }
    }

    /// Tells Redis of a request, and answers what that has made of it.
    async fn tell(&self, place: &Place, told: Told<'_>) -> Result<String, RedisError> {
        // Without an id its set is not touched, but has to be where the others are.
        let set = match told.id {
            Some(id) => place.ids(id.partition(self.config.partitions)),
            None => place.counted.keys.stats(place.window),
        };
        self.twice(&set, async |via| {
            let replies = via.run(&record(place, &set, &told, via.is_again)).await?;
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

/// The answer that the script tells, or that there is no room for the job.
fn refused_or(said: &str) -> Result<Answer, RedisError> {
    told(said).ok_or(RedisError::TooManyJobs)
}
