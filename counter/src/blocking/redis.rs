//! What one request asks of Redis: one script, on a connection of its own, which those that follow share. In a cluster it is two scripts, on the nodes that have the
//! id's set and the statistics, which are asked for at the first node that the variable names. So it is of many ids, with a script for each
//! partition's.

use std::cell::RefCell;
use std::collections::BTreeMap;

use verve_protocol::counter_name::MAX_COUNTERS;
use verve_protocol::keys::{MAX_QUEUED_JOBS, indexed, stats};
use verve_protocol::scripts::{ADD_WITHIN, COUNT, RECORD, TELL_COUNTER};
use verve_protocol::{CallbackJob, CounterName, Id, RedisUrl, Window};

use super::bindings::fermyon::spin::redis::{Connection, Error, RedisParameter, RedisResult};
use super::now_ms;
use verve_counter_core::answer::{Answer, Limit, NotCounted, statistic, told as answer_told};
use verve_counter_core::cluster::{Address, Map, Redirect};
use verve_counter_core::config::Config;
use verve_counter_core::limits::{added, endpoints_seconds};
use verve_counter_core::redis_error::{RedisError, Refusal};
use verve_counter_core::registered::no_more_counters;
use verve_counter_core::reply::Reply;
use verve_counter_core::sets::{Distinct, by_partition, in_order};
use verve_counter_core::stats::{Counts, count, kept_seconds};

/// How often what one node sends on is sent on at most: a key on its way is asked for where its slot was, and then where it goes to.
const REDIRECTIONS: usize = 5;

/// Redis, as one request in a window sees it.
pub struct Redis<'a> {
    config: &'a Config,
    window: Window,
    /// Connections that went well, each with the node that it leads to.
    kept: RefCell<Vec<(RedisUrl, Connection)>>,
}

/// What Redis is told of a request.
#[derive(Default)]
pub struct Note<'a> {
    /// The id, if it is to be recorded.
    id: Option<Id>,
    /// What came of it, if that is known.
    outcome: &'a str,
    job: Option<&'a CallbackJob>,
}

impl<'a> Note<'a> {
    /// Only what came of the request.
    pub const fn of(outcome: &'a str) -> Self {
        Self {
            id: None,
            outcome,
            job: None,
        }
    }
}

/// Why a request was not recorded.
pub struct Unrecorded {
    /// What Redis fails by.
    pub error: RedisError,
    /// Whether Redis answers, so that this may be counted.
    pub may_be_noted: bool,
}

impl From<RedisError> for Unrecorded {
    fn from(error: RedisError) -> Self {
        Self {
            error,
            may_be_noted: false,
        }
    }
}

impl<'a> Redis<'a> {
    /// None is connected yet.
    pub const fn new(config: &'a Config, window: Window) -> Self {
        Self {
            config,
            window,
            kept: RefCell::new(Vec::new()),
        }
    }

    /// Records an id, and a callback job.
    pub fn record(&self, id: Id, job: Option<&CallbackJob>) -> Result<Answer, Unrecorded> {
        let note = Note {
            id: Some(id),
            outcome: "",
            job,
        };
        let is_cluster = self.config.redis_urls.as_slice().len() > 1;
        let told = match (!is_cluster).then(|| self.note(&note)) {
            Some(Err(error)) if error.refusal() != Some(Refusal::CrossSlot) => return Err(error.into()),
            Some(Ok(told)) => told,
            _ => {
                if job.is_some() && self.config.endpoint_limit.is_some() {
                    // First, so that an id whose job is refused is not recorded.
                    let told = self.note(&Note {
                        id: None,
                        outcome: "",
                        job,
                    })?;
                    if !told.is_empty() {
                        return refused_or(&told);
                    }
                }
                let (answers, _) = self.add(&self.ids(id), &[id.to_string()])?;
                let Some(answer @ Ok(_)) = answers.first() else {
                    // Nothing more is recorded of what is beyond a limit.
                    self.note(&Note::of(stats::LIMITED))?;
                    return Ok(Err(NotCounted::Limited(Limit::Window)));
                };
                let outcome = statistic(*answer);
                let job = job.filter(|_| self.config.endpoint_limit.is_none());
                self.note(&Note { id: None, outcome, job })?
            }
        };
        refused_or(&told)
    }

    /// Records ids, as many as one script may be given, and answers what became of each, in their order.
    pub fn record_many(&self, ids: &[Id]) -> Vec<Result<Answer, RedisError>> {
        let partitions = self.config.partitions;
        let mut counts = Counts::new();
        let mut of_partitions = BTreeMap::new();
        for (partition, ids) in by_partition(ids, partitions) {
            let (key, distinct) = (self.config.keys.ids(self.window, partition), Distinct::of(&ids));
            let added = self.add(&key, &distinct.members()).and_then(|(added, again)| {
                let answers = distinct.answers(&added);
                let answers = answers.ok_or_else(|| RedisError::UnexpectedLength(key.clone()))?;
                for field in answers.iter().map(|answer| statistic(*answer)) {
                    // After an attempt whose answer was lost, what is there may have come by that.
                    if !again || field != stats::DUPLICATE {
                        count(&mut counts, field);
                    }
                }
                Ok(answers)
            });
            of_partitions.insert(partition, added);
        }
        self.tell(&counts);
        in_order(ids, partitions, of_partitions)
    }

    /// Tells Redis what came of ids, once: where the answer is lost, it may have been counted.
    fn tell(&self, counts: &Counts) {
        if counts.is_empty() {
            return;
        }
        let (key, windows) = (self.config.keys.stats(self.window), self.windows());
        let arguments = [COUNT, "2", &key, &windows, &self.statistics_seconds(), &self.indexed()];
        let mut arguments = arguments.map(text).to_vec();
        arguments.extend(counts.iter().flat_map(|(field, n)| [text(field), text(n.to_string())]));
        // Statistics alone: the ids are recorded.
        let _ = self.attempt(
            &|connection, _| connection.execute("EVAL", &arguments).map_err(failed),
            false,
        );
    }

    /// Tells the reporter that a named counter is in use. What came of it says that there may be no more counters.
    pub fn tell_counter(&self, name: &CounterName) -> Result<Option<Limit>, RedisError> {
        let names = self.config.keys.counters();
        let most = MAX_COUNTERS.to_string();
        let arguments = [TELL_COUNTER, "1", &names, name.as_str(), &most];
        let said = self.twice(|connection, _| evaluate(connection, &arguments))?;
        Ok(no_more_counters(&said))
    }

    /// Tells Redis of a request, and answers what that has made of it.
    pub fn note(&self, note: &Note<'_>) -> Result<Vec<u8>, RedisError> {
        let keys = &self.config.keys;
        let stats = keys.stats(self.window);
        let keys = [
            // Without an id it is not touched, but has to be where the others are.
            note.id.map_or_else(|| stats.clone(), |id| self.ids(id)),
            stats,
            keys.callbacks(),
            keys.endpoints(self.window),
            self.windows(),
        ];
        let (ids_limit, jobs_limit) = (limit(self.config.window_limit), limit(self.config.endpoint_limit));
        let brief = endpoints_seconds(self.window).to_string();
        let endpoint = note.job.map_or("", |job| job.endpoint.as_str());
        let id = note.id.map(|id| id.to_string()).unwrap_or_default();
        let (ends, waits) = (self.window.end().to_string(), self.waits());
        let indexed = self.indexed();
        let (expiry, most) = (self.statistics_seconds(), MAX_QUEUED_JOBS.to_string());
        let fields = note.job.map(CallbackJob::to_fields);
        let fields: Vec<&str> = fields
            .iter()
            .flatten()
            .flat_map(|(field, value)| [*field, value])
            .collect();
        self.twice(|connection, again| {
            let again = if again { "1" } else { "" };
            let [ids, stats, callbacks, endpoints, windows] = &keys;
            let arguments = [
                RECORD,
                "5",
                ids,
                stats,
                callbacks,
                endpoints,
                windows,
                &id,
                note.outcome,
                again,
                &ends,
                waits,
                &indexed,
                &expiry,
                &most,
                &ids_limit,
                &jobs_limit,
                &brief,
                endpoint,
            ];
            evaluate(connection, arguments.iter().chain(&fields))
        })
    }

    /// Adds ids, all different, on the node that has their set. Answers what came of each, and whether it was another attempt.
    fn add(&self, key: &str, ids: &[String]) -> Result<(Vec<Answer>, bool), RedisError> {
        let limit = limit(self.config.window_limit);
        let ends = self.window.end().to_string();
        let mut arguments = [ADD_WITHIN, "1", key, &limit, &ends, self.waits()].map(text).to_vec();
        arguments.extend(ids.iter().map(text));
        self.twice(|connection, again| {
            let said = connection.execute("EVAL", &arguments).map_err(failed)?;
            let answers = said.iter().filter_map(|said| match said {
                RedisResult::Int64(said) => added(*said),
                _ => None,
            });
            Ok((answers.collect(), again))
        })
    }

    /// Where it is noted which windows have ids.
    fn windows(&self) -> String {
        self.config.keys.windows(self.window.length())
    }

    /// The window, as it is noted there.
    fn indexed(&self) -> String {
        indexed(self.window, self.config.partitions.count())
    }

    /// How long the window's statistics are kept from now on, in seconds.
    fn statistics_seconds(&self) -> String {
        kept_seconds(self.window, now_ms() / 1000).to_string()
    }

    /// Whether replicas are waited for, as scripts take it.
    const fn waits(&self) -> &'static str {
        if self.config.wait_replicas > 0 { "1" } else { "" }
    }

    fn ids(&self, id: Id) -> String {
        self.config.keys.ids(self.window, id.partition(self.config.partitions))
    }

    /// Does what may be done twice, again on a fresh connection if it fails, and where the node that is asked sends it. Each time enough
    /// replicas have to have it.
    fn twice<T>(&self, command: impl Fn(&Connection, bool) -> Result<T, RedisError>) -> Result<T, RedisError> {
        self.attempt(&command, false)
            .or_else(|first| self.attempt(&command, true).map_err(|second| first.and_then(second)))
    }

    /// Does something where the nodes send it. Another attempt has fresh connections.
    fn attempt<T>(
        &self,
        command: &impl Fn(&Connection, bool) -> Result<T, RedisError>,
        again: bool,
    ) -> Result<T, RedisError> {
        let named = self.config.redis_urls.as_slice();
        // Where there are several, the first may be away.
        let mut node = named[usize::from(again) % named.len()].clone();
        let mut done = self.at(&node, false, again, command);
        for _ in 0..REDIRECTIONS {
            let Err(Failed { error, .. }) = &done else {
                break;
            };
            let Some(redirect) = error.redirect().cloned() else {
                break;
            };
            let told = redirect.to(node.host());
            let to = told
                .as_ref()
                .and_then(|address| node.of_node(&address.host, address.port));
            done = match &to {
                Some(to) => self.at(to, redirect.is_ask, again, command),
                None => Err(Failed {
                    error: RedisError::SentNowhere.at(&node),
                    is_connected: false,
                }),
            };
            let mut at = to;
            if matches!(&done, Err(failed) if !failed.is_connected) {
                // Nobody is there: where else the node is, the map says.
                for other in self.others(&node, &redirect, told.as_ref()).unwrap_or_default() {
                    let tried = self.at(&other, redirect.is_ask, again, command);
                    // What was sent may have been done there.
                    if !matches!(&tried, Err(failed) if !failed.is_connected) {
                        (done, at) = (tried, Some(other));
                        break;
                    }
                }
            }
            match at {
                Some(at) => node = at,
                None => break,
            }
        }
        done.map_err(|failed| failed.error)
    }

    /// Does something at a node, which is `asking` for a key that is on its way to it. Another attempt has a fresh connection.
    fn at<T>(
        &self,
        node: &RedisUrl,
        asking: bool,
        again: bool,
        command: &impl Fn(&Connection, bool) -> Result<T, RedisError>,
    ) -> Result<T, Failed> {
        let connection = match self.kept(node).filter(|_| !again) {
            Some(connection) => Ok(connection),
            None => Connection::open(node.secret()),
        };
        let connection = connection.map_err(|error| Failed {
            error: failed(error).at(node),
            is_connected: false,
        })?;
        let attempt = || {
            if asking {
                connection.execute("ASKING", &[]).map_err(failed)?;
            }
            let done = command(&connection, again)?;
            self.wait_for_replicas(&connection)?;
            Ok(done)
        };
        let done = attempt().map_err(|error: RedisError| Failed {
            error: error.at(node),
            is_connected: true,
        })?;
        self.kept.borrow_mut().push((node.clone(), connection));
        Ok(done)
    }

    /// Where else the node is that `asked` sends on to, which it does not say or where it is not reached.
    fn others(&self, asked: &RedisUrl, redirect: &Redirect, told: Option<&Address>) -> Result<Vec<RedisUrl>, Error> {
        let connection = match self.kept(asked) {
            Some(connection) => connection,
            None => Connection::open(asked.secret())?,
        };
        let slots = [RedisParameter::Binary(b"SLOTS".to_vec())];
        let answer: Vec<Reply> = connection.execute("CLUSTER", &slots)?.into_iter().map(reply).collect();
        self.kept.borrow_mut().push((asked.clone(), connection));
        let map = Map::parse(&answer, asked.host());
        let node = match told {
            Some(address) => map.at(address),
            None => map.node(redirect.slot),
        };
        let others = node.into_iter().flat_map(|node| node.iter());
        let others = others.filter(|address| Some(*address) != told);
        Ok(others
            .filter_map(|address| asked.of_node(&address.host, address.port))
            .collect())
    }

    /// Takes the connection to a node that there is.
    fn kept(&self, node: &RedisUrl) -> Option<Connection> {
        let mut kept = self.kept.borrow_mut();
        let at = kept.iter().position(|(url, _)| url == node)?;
        Some(kept.swap_remove(at).1)
    }

    fn wait_for_replicas(&self, connection: &Connection) -> Result<(), RedisError> {
        let (wanted, within) = (self.config.wait_replicas, self.config.replicas_within_ms());
        if wanted == 0 {
            return Ok(());
        }
        let wait = [i64::from(wanted), within].map(RedisParameter::Int64);
        match connection.execute("WAIT", &wait).map_err(failed)?.first() {
            Some(RedisResult::Int64(replicas)) if *replicas >= i64::from(wanted) => Ok(()),
            Some(RedisResult::Int64(replicas)) => Err(RedisError::TooFewReplicas {
                replicas: *replicas,
                wanted,
                within_ms: within,
            }),
            _ => Err(RedisError::UnexpectedType),
        }
    }
}

/// What came of a command at a node.
struct Failed {
    error: RedisError,
    /// Whether the node was there, so that it may have done it all the same.
    is_connected: bool,
}

/// The answer that [`RECORD`] tells, or that there is no room for the job.
fn refused_or(said: &[u8]) -> Result<Answer, Unrecorded> {
    answer_told(said).ok_or(Unrecorded {
        error: RedisError::TooManyJobs,
        may_be_noted: true,
    })
}

/// Runs a script that answers a text.
fn evaluate<'a>(
    connection: &Connection,
    arguments: impl IntoIterator<Item = &'a &'a str>,
) -> Result<Vec<u8>, RedisError> {
    let arguments: Vec<RedisParameter> = arguments.into_iter().map(text).collect();
    let said = connection.execute("EVAL", &arguments).map_err(failed)?;
    match said.into_iter().next() {
        Some(RedisResult::Binary(said)) => Ok(said),
        _ => Err(RedisError::UnexpectedType),
    }
}

/// A limit, as scripts take it.
fn limit(limit: Option<u64>) -> String {
    limit.map(|limit| limit.to_string()).unwrap_or_default()
}

fn reply(result: RedisResult) -> Reply {
    match result {
        RedisResult::Nil => Reply::Nothing,
        RedisResult::Int64(number) => Reply::Number(number),
        RedisResult::Status(text) => Reply::Text(text),
        RedisResult::Binary(bytes) => Reply::Text(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

fn text(value: impl AsRef<str>) -> RedisParameter {
    RedisParameter::Binary(value.as_ref().as_bytes().to_vec())
}

fn failed(error: Error) -> RedisError {
    match error {
        Error::InvalidAddress => RedisError::InvalidAddress,
        Error::TooManyConnections => RedisError::TooManyConnections,
        Error::TypeError => RedisError::UnexpectedType,
        Error::Other(message) => RedisError::told(message),
    }
}
