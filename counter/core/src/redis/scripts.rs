//! The scripts, each with a function that puts its keys and arguments in the order in which it takes them.

use std::collections::BTreeSet;

use verve_protocol::keys::{MAX_QUEUED_JOBS, UNREPORTED_SECONDS, indexed};
use verve_protocol::scripts::{ADD_JOB_WITHIN, ADD_TOGETHER, ADD_WITHIN, KEEP, RECORD, RUN_ONCE, TELL_COUNTER};
use verve_protocol::{CallbackJob, CounterName, Id, Keys};

use super::text;
use crate::counted::Place;
use crate::expiry::end_of;
use crate::limits::endpoints_seconds;
use crate::spooled::Batch;
use crate::stats::kept_seconds;

/// A script to be run, with its keys and arguments.
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

    /// With one that is empty for none.
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

    /// With a value and its name, if there is one.
    fn with_named(self, name: &str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.with(name).with(value),
            None => self,
        }
    }

    /// The key that brings it to its node.
    pub fn key(&self) -> &str {
        self.0.get(2).map_or("", String::as_str)
    }

    /// As `EVAL` takes it.
    pub fn words(&self) -> impl Iterator<Item = String> {
        self.0.iter().cloned()
    }
}

/// Whether something is said, for which scripts take any text or none.
fn flag(is: bool) -> &'static str {
    if is { "1" } else { "" }
}

/// Has a set of ids expire. If `again`, replicas are sent that in any case.
pub fn keep(set: &str, again: bool) -> Script {
    Script::new(KEEP, &[set]).with(end_of(set)).with(flag(again))
}

/// Adds ids, all different, to a set as far as there is room; and has it expire, if that is said, again or not.
pub fn add_within(set: &str, limit: Option<u64>, keep_again: Option<bool>, ids: &[String]) -> Script {
    Script::new(ADD_WITHIN, &[set])
        .with_any(limit)
        .with_any(keep_again.map(|_| end_of(set)))
        .with(flag(keep_again == Some(true)))
        .with_all(ids)
}

/// Adds ids, of each set all different, to sets of one node.
pub fn add_together<'a>(sets: impl Iterator<Item = (&'a str, &'a [String])> + Clone) -> Script {
    let first = sets.clone().next().map_or("", |(key, _)| key);
    sets.fold(Script::new(ADD_TOGETHER, &[first]), |script, (key, ids)| {
        script.with(key).with(ids.len()).with_all(ids)
    })
}

/// Registers that a named counter is in use, where there may be no more than so many.
pub fn tell_counter(keys: &Keys, name: &CounterName, most: Option<u64>) -> Script {
    Script::new(TELL_COUNTER, &[&keys.counters()]).with(name).with_any(most)
}

/// Adds a callback job, where its endpoint may have no more than so many of them in its window.
pub fn add_job_within(keys: &Keys, job: &CallbackJob, limit: u64) -> Script {
    Script::new(ADD_JOB_WITHIN, &[&keys.callbacks(), &keys.endpoints(job.window)])
        .with(limit)
        .with(endpoints_seconds(job.window))
        .with(job.endpoint.as_str())
        .with_all(fields(job))
}

/// Runs a batch of commands, unless it ran before.
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

/// What Redis is told of a request in one trip.
#[derive(Clone, Copy)]
pub struct Told<'a> {
    /// The id, if it is to be recorded.
    pub id: Option<Id>,
    /// What came of it, if that is known.
    pub outcome: Option<&'a str>,
    /// The callback job, if there is one.
    pub job: Option<&'a CallbackJob>,
    /// The most ids of a set.
    pub window_limit: Option<u64>,
    /// The most jobs of an endpoint.
    pub endpoint_limit: Option<u64>,
    /// Whether replicas are waited for.
    pub waits: bool,
    /// How many partitions a window has.
    pub partitions: u16,
    /// By the host's clock, in Unix seconds.
    pub now_s: u64,
}

/// Records a request in one trip. `set` has its id, or else is any key of where the other keys are. An attempt that is not the first one is `again`.
pub fn record(place: &Place, set: &str, told: &Told<'_>, again: bool) -> Script {
    let (keys, window, job) = (&place.counted.keys, place.window, told.job);
    let keys = [
        set,
        &keys.stats(window),
        &keys.callbacks(),
        &keys.endpoints(window),
        &keys.windows(window.length()),
    ];
    let script = Script::new(RECORD, &keys)
        .with_named("id", told.id)
        .with_named("outcome", told.outcome)
        .with_named("again", again.then_some(1))
        .with_named("ends", Some(window.end()))
        .with_named("waits", told.waits.then_some(1))
        .with_named("window", Some(indexed(window, told.partitions)))
        .with_named("expiry", Some(kept_seconds(window, told.now_s)))
        .with_named("limit", told.window_limit);
    match job {
        None => script,
        Some(job) => script
            .with_named("endpoint", Some(job.endpoint.as_str()))
            .with_named("most", Some(MAX_QUEUED_JOBS))
            .with_named("endpoint_limit", told.endpoint_limit)
            .with_named("brief", Some(endpoints_seconds(window)))
            .with("job")
            .with_all(fields(job)),
    }
}

/// A job's fields, each with its value.
fn fields(job: &CallbackJob) -> Vec<String> {
    let fields = job.to_fields();
    let words = fields.iter().flat_map(|(field, value)| [text(field), text(value)]);
    words.collect()
}
