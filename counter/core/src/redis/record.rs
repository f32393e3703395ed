//! Recording everything about a request in one round trip.
//!
//! For instances that serve one request each.

use verve_protocol::{CallbackJob, Id};

use super::Redis;
use super::scripts::{Request, record};
use crate::answer::{Answer, Answers, NotCounted, in_all, parse_answer, statistic};
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
    ) -> Result<Answers, RedisError> {
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
        let counter_windows: Vec<CounterWindow> = counter_window.all().collect();
        if self.config.redis_urls.as_slice().len() == 1 {
            match self.send(&counter_windows, all).await {
                Err(error) if error.refusal() == Some(Refusal::CrossSlot) => {}
                outcomes => return answers(&outcomes?),
            }
        }
        // In a cluster, the id's sets may be on other nodes.
        let mut rest = Request { id: None, ..all };
        if job.is_some() && endpoint_limit.is_some() {
            // First, so that an id whose job is refused is not recorded.
            let outcomes = self.send(&counter_windows, rest).await?;
            if outcomes.iter().any(|outcome| !outcome.is_empty()) {
                return answers(&outcomes);
            }
            rest.job = None;
        }
        let partition = id.partition(self.config.partitions);
        let mut added = Vec::new();
        for counter_window in &counter_windows {
            let limit = window_limit.filter(|_| added.is_empty());
            let key = counter_window.ids(partition);
            let [answer] = self.add_at_once(&key, &[id.to_string()], limit).await?[..] else {
                return Err(RedisError::UnexpectedLength(key));
            };
            if answer.is_err() {
                // Such an id is not in any window, and has no job.
                rest.outcome = Some(statistic(answer));
                rest.job = None;
                self.send(&counter_windows, rest).await?;
                return Ok(in_all(answer));
            }
            added.push(answer);
        }
        for (counter_window, answer) in counter_windows.into_iter().zip(&added) {
            rest.outcome = Some(statistic(*answer));
            answers(&self.send(&[counter_window], rest).await?).map(drop)?;
            // The job is of the first, which is the main window.
            rest.job = None;
        }
        Ok(in_windows(added))
    }

    /// Sends a request to Redis, and returns the script's outcome in each window.
    async fn send(&self, counter_windows: &[CounterWindow], request: Request<'_>) -> Result<Vec<String>, RedisError> {
        // Without an id the set is not used, but its key must be on the node of the others.
        let sets = counter_windows.iter().map(|counter_window| {
            let set = match request.id {
                Some(id) => counter_window.ids(id.partition(self.config.partitions)),
                None => counter_window.state.keys.stats(counter_window.window),
            };
            (counter_window.clone(), set)
        });
        let with_sets: Vec<(CounterWindow, String)> = sets.collect();
        let first = with_sets.first().map_or("", |(_, set)| set);
        self.with_retry(first, async |via| {
            let replies = via.run(&record(&with_sets, &request, via.is_again)).await?;
            // The script itself has already written something for `WAIT`.
            self.replicated(via, None).await?;
            let outcomes = replies.into_iter().map(|reply| match reply {
                Reply::Text(outcome) => Ok(outcome),
                _ => Err(RedisError::UnexpectedType),
            });
            outcomes.collect()
        })
        .await
    }
}

/// Parses the outcomes of the script, or returns that there is no room for the job.
fn answers(outcomes: &[String]) -> Result<Answers, RedisError> {
    let answers: Option<Vec<Answer>> = outcomes.iter().map(|outcome| parse_answer(outcome)).collect();
    answers.map(in_windows).ok_or(RedisError::TooManyJobs)
}

/// Returns the answers in the windows of all lengths, from those of the first ones.
fn in_windows(first: Vec<Answer>) -> Answers {
    let rest = first.first().copied().unwrap_or(Err(NotCounted::Unavailable));
    let mut answers = in_all(rest);
    answers
        .iter_mut()
        .zip(first)
        .for_each(|(answer, first)| *answer = first);
    answers
}
