//! The scripts.
//!
//! Each function puts the keys and arguments of one script into the order that it expects.

use std::collections::BTreeSet;

use verve_protocol::keys::{MAX_QUEUED_JOBS, UNREPORTED_SECONDS, indexed};
use verve_protocol::scripts::{ADD_JOB_WITHIN, ADD_TOGETHER, ADD_WITHIN, KEEP, RECORD, REGISTER_COUNTER, RUN_ONCE};
use verve_protocol::{CallbackJob, CounterName, Id, Keys, WindowLengths};

use super::text;
use crate::counter_state::CounterWindow;
use crate::expiry::end_of;
use crate::limits::endpoints_seconds;
use crate::spooled::Batch;
use crate::stats::kept_seconds;

/// A script to run, with its keys and arguments.
pub struct Script(Vec<String>);

impl Script {
    fn new(script: &str, keys: &[&str]) -> Self {
        let head = [script.to_owned(), keys.len().to_string()].into_iter();
        Self(head.chain(keys.iter().map(text)).collect())
    }

    fn with(mut self, argument: impl ToString) -> Self {
        self.0.push(argument.to_string());
        self
    }

    /// Adds an argument, which is empty for `None`.
    fn with_any(self, argument: Option<impl ToString>) -> Self {
        match argument {
            Some(argument) => self.with(argument),
            None => self.with(""),
        }
    }

    fn with_all(mut self, arguments: impl IntoIterator<Item = impl ToString>) -> Self {
        self.0
            .extend(arguments.into_iter().map(|argument| argument.to_string()));
        self
    }

    /// Adds a name and its value, if there is a value.
    fn with_named(self, name: &str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.with(name).with(value),
            None => self,
        }
    }

    /// Returns the key that routes the script to its node.
    pub fn key(&self) -> &str {
        self.0.get(2).map_or("", String::as_str)
    }

    /// Returns the arguments of `EVAL`.
    pub fn words(&self) -> impl Iterator<Item = String> {
        self.0.iter().cloned()
    }
}

/// Returns a flag as scripts expect it: any text for true, an empty one for false.
fn flag(is: bool) -> &'static str {
    if is { "1" } else { "" }
}

/// Sets the expiry of a set of ids. If `again`, replicas receive it in any case.
pub fn keep(set: &str, again: bool) -> Script {
    Script::new(KEEP, &[set]).with(end_of(set)).with(flag(again))
}

/// Adds distinct ids to a set, as far as there is room.
///
/// If `keep_again` is set, it also sets the expiry of the set, with `again` of [`keep`].
pub fn add_within(set: &str, limit: Option<u64>, keep_again: Option<bool>, ids: &[String]) -> Script {
    Script::new(ADD_WITHIN, &[set])
        .with_any(limit)
        .with_any(keep_again.map(|_| end_of(set)))
        .with(flag(keep_again == Some(true)))
        .with_all(ids)
}

/// Adds ids, distinct within each set, to sets of one node.
pub fn add_together<'a>(sets: impl Iterator<Item = (&'a str, &'a [String])> + Clone) -> Script {
    let first = sets.clone().next().map_or("", |(key, _)| key);
    sets.fold(Script::new(ADD_TOGETHER, &[first]), |script, (key, ids)| {
        script.with(key).with(ids.len()).with_all(ids)
    })
}

/// Registers that a named counter is in use, unless there are already `most`.
///
/// It is registered for windows of these lengths.
pub fn register_counter(keys: &Keys, name: &CounterName, lengths: &WindowLengths, most: Option<u32>) -> Script {
    let lists: Vec<String> = [keys.counters()]
        .into_iter()
        .chain(lengths.all().map(|length| keys.counters_in_use(length)))
        .collect();
    let lists: Vec<&str> = lists.iter().map(String::as_str).collect();
    Script::new(REGISTER_COUNTER, &lists).with(name).with_any(most)
}

/// Adds a callback job, unless its endpoint has `limit` jobs in its window.
pub fn add_job_within(keys: &Keys, job: &CallbackJob, limit: u64) -> Script {
    Script::new(ADD_JOB_WITHIN, &[&keys.callbacks(), &keys.endpoints(job.window)])
        .with(limit)
        .with(endpoints_seconds(job.window))
        .with(job.endpoint.as_str())
        .with_all(fields(job))
}

/// Runs a batch of commands, unless it has already run.
pub fn run_once(keys: &Keys, batch: &Batch) -> Script {
    let (own, stream) = (keys.spooled_batch(&batch.name), keys.callbacks());
    let (first, most) = match batch.has_jobs() {
        true => (Some(stream.as_str()), MAX_QUEUED_JOBS),
        false => (None, 0),
    };
    let others: BTreeSet<&str> = batch.keys().filter(|key| Some(*key) != first).collect();
    let keys: Vec<&str> = [own.as_str()].into_iter().chain(first).chain(others).collect();
    Script::new(RUN_ONCE, &keys)
        .with(UNREPORTED_SECONDS)
        .with(most)
        .with_all(&batch.commands)
}

/// What is sent to Redis about a request in one round trip.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The id, if it is to be recorded.
    pub id: Option<Id>,
    /// The outcome of the id, if it is known.
    pub outcome: Option<&'a str>,
    /// The callback job, if there is one.
    pub job: Option<&'a CallbackJob>,
    /// The maximum number of ids of a set of the first window.
    pub window_limit: Option<u64>,
    /// The maximum number of jobs of an endpoint.
    pub endpoint_limit: Option<u64>,
    /// Whether to wait for replicas.
    pub waits: bool,
    /// The number of partitions of a window.
    pub partitions: u16,
    /// The time by the host's clock, in Unix seconds.
    pub now_s: u64,
}

/// Records a request in one round trip.
///
/// `counter_windows` are those of one counter, each with the set of the request's id. Without an id
/// it is any key on the node of the other keys. `again` means that this is not the first attempt.
pub fn record(counter_windows: &[(CounterWindow, String)], request: &Request<'_>, again: bool) -> Script {
    let mut keys = Vec::new();
    for (CounterWindow { state, window }, set) in counter_windows {
        let (stats, windows) = (state.keys.stats(*window), state.keys.windows(window.length()));
        keys.extend([set.clone(), stats, windows]);
    }
    if let Some((CounterWindow { state, window }, _)) = counter_windows.first() {
        keys.extend([state.keys.callbacks(), state.keys.endpoints(*window)]);
    }
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let of_window = |script: Script, (CounterWindow { window, .. }, _): &(CounterWindow, String)| {
        script
            .with(window.end())
            .with(indexed(*window, request.partitions))
            .with(kept_seconds(*window, request.now_s))
    };
    let script = (counter_windows.iter())
        .fold(Script::new(RECORD, &keys), of_window)
        .with_named("id", request.id)
        .with_named("outcome", request.outcome)
        .with_named("again", again.then_some(1))
        .with_named("waits", request.waits.then_some(1))
        .with_named("limit", request.window_limit);
    match request.job {
        None => script,
        Some(job) => script
            .with_named("endpoint", Some(job.endpoint.as_str()))
            .with_named("most", Some(MAX_QUEUED_JOBS))
            .with_named("endpoint_limit", request.endpoint_limit)
            .with_named("brief", Some(endpoints_seconds(job.window)))
            .with("job")
            .with_all(fields(job)),
    }
}

/// Returns a job's fields, each with its value.
fn fields(job: &CallbackJob) -> Vec<String> {
    let fields = job.to_fields();
    let words = fields.iter().flat_map(|(field, value)| [text(field), text(value)]);
    words.collect()
}
