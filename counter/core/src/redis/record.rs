//! Recording everything about a request in one round trip.
//!
//! For instances that serve one request each.

use verve_protocol::{CallbackJob, Id};

use super::Redis;
use super::scripts::{Request, record};
use crate::answer::{Answer, Limit, NotCounted, parse_answer, statistic};
use crate::counter_state::CounterWindow;
use crate::ports::Host;
use crate::redis_error::{RedisError, Refusal};
use crate::reply::Reply;

impl<H: Host> Redis<H> {
    /// Records an id, a callback job, and the outcome in the statistics.
    pub async fn record(
        &self,
        counter_window: &CounterWindow,
        id: Id,
        job: Option<&CallbackJob>,
    ) -> Result<Answer, RedisError> {
        let (window_limit, endpoint_limit) = (self.config.window_limit, self.config.endpoint_limit);
        let all = Request {
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
            match self.send(counter_window, all).await {
                Err(error) if error.refusal() == Some(Refusal::CrossSlot) => {}
                outcome => return refused_or(&outcome?),
            }
        }
        // In a cluster, the id's set may be on another node.
        let mut rest = Request { id: None, ..all };
        if job.is_some() && endpoint_limit.is_some() {
            // First, so that an id whose job is refused is not recorded.
            let outcome = self.send(counter_window, rest).await?;
            if !outcome.is_empty() {
                return refused_or(&outcome);
            }
            rest.job = None;
        }
        let key = counter_window.ids(id.partition(self.config.partitions));
        let added = self.add_at_once(&key, &[id.to_string()]).await?;
        let [answer] = added[..] else {
            return Err(RedisError::UnexpectedLength(key));
        };
        if answer.is_err() {
            // No job is recorded for an id that exceeds a limit.
            rest.job = None;
        }
        rest.outcome = Some(statistic(answer));
        let outcome = self.send(counter_window, rest).await?;
        match answer {
            Ok(_) => refused_or(&outcome),
            Err(_) => Ok(Err(NotCounted::Limited(Limit::Window))),
        }
    }

    /// Sends a request to Redis, and returns the outcome that the script reports.
    async fn send(&self, counter_window: &CounterWindow, request: Request<'_>) -> Result<String, RedisError> {
        // Without an id the set is not used, but its key must be on the node of the others.
        let set = match request.id {
            Some(id) => counter_window.ids(id.partition(self.config.partitions)),
            None => counter_window.state.keys.stats(counter_window.window),
        };
        self.with_retry(&set, async |via| {
            let replies = via.run(&record(counter_window, &set, &request, via.is_again)).await?;
            // The script itself has already written something for `WAIT`.
            self.replicated(via, None).await?;
            match replies.into_iter().next() {
                Some(Reply::Text(outcome)) => Ok(outcome),
                _ => Err(RedisError::UnexpectedType),
            }
        })
        .await
    }
}

/// Parses the answer of the script, or returns that there is no room for the job.
fn refused_or(outcome: &str) -> Result<Answer, RedisError> {
    parse_answer(outcome).ok_or(RedisError::TooManyJobs)
}
