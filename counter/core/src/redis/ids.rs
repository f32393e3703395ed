//! Recording ids in as few commands as possible.
//!
//! The ids of one node that wait at the same time are recorded together.

use std::collections::BTreeMap;
use std::rc::Rc;

use futures::{StreamExt, TryStreamExt, future, stream};
use verve_protocol::{Id, Partition, Window};

use super::scripts::{add_together, add_within, keep};
use super::{Node, Redis, text};
use crate::answer::{Answer, Outcome};
use crate::config::Policy;
use crate::counter_state::CounterWindow;
use crate::limits::added;
use crate::ports::Host;
use crate::redis_error::RedisError;
use crate::reply::Reply;
use crate::sets::Distinct;

/// The answers about the ids of a set.
pub type OfSet = Result<Vec<Answer>, RedisError>;
/// The answers about the ids of each set of a window.
pub type OfSets = Vec<OfSet>;

/// The number of ids from which they are added by one script.
///
/// The script runs two commands and is one itself, so it costs Redis no more commands than there
/// are ids.
const TOGETHER_FROM: usize = 3;

/// Ids to be recorded in one set.
struct Set<'a, H: Host> {
    counter_window: &'a CounterWindow,
    partition: Partition,
    key: String,
    /// The maximum number of its ids, if that is limited.
    limit: Option<u64>,
    /// Whether the set is known to have an expiry.
    expires: bool,
    /// The node of the set, as far as is known.
    node: Rc<Node<H>>,
    distinct: Distinct,
    /// The members to add, each once.
    members: Vec<String>,
}

impl<H: Host> Redis<H> {
    /// Records ids in the sets of each of these windows.
    ///
    /// Returns the answers of each set of the first window, of the second, and so on. The first of
    /// several equal ids is the new one.
    pub async fn add_ids(&self, counter_windows: &[CounterWindow], sets: &BTreeMap<Partition, Vec<Id>>) -> Vec<OfSets> {
        let in_windows = counter_windows.iter().flat_map(|counter_window| {
            let sets = sets.iter();
            sets.map(|(partition, ids)| self.set_of(counter_window, *partition, ids))
        });
        let in_windows: Vec<Set<'_, H>> = in_windows.collect();
        let together = self.add_together(&in_windows).await;
        let mut adding = in_windows.iter().zip(together).map(async |(set, together)| {
            let added = match together {
                Some(added) => added,
                None => self.add(set).await?,
            };
            let answers = set.distinct.answers(&added);
            answers.ok_or_else(|| RedisError::UnexpectedLength(set.key.clone()))
        });
        let answers = match (adding.next(), adding.next()) {
            (Some(only), None) => vec![only.await],
            (first, second) => future::join_all(first.into_iter().chain(second).chain(adding)).await,
        };
        let recorded = in_windows.iter().zip(&answers);
        let recorded = recorded.filter(|(set, answers)| answers.is_ok() && !set.members.is_empty());
        recorded.for_each(|(set, _)| {
            let CounterWindow { state, window } = set.counter_window;
            state.has_expiry(*window, set.partition);
        });
        let mut answers = answers.into_iter();
        let of_windows = counter_windows.iter();
        of_windows
            .map(|_| answers.by_ref().take(sets.len()).collect())
            .collect()
    }

    fn set_of<'a>(&self, counter_window: &'a CounterWindow, partition: Partition, ids: &[Id]) -> Set<'a, H> {
        let distinct = Distinct::of(ids);
        let key = counter_window.ids(partition);
        Set {
            counter_window,
            partition,
            node: self.node_of(|| &key),
            key,
            limit: self.window_limit(counter_window.window),
            expires: counter_window.state.expires(counter_window.window, partition),
            members: distinct.members(),
            distinct,
        }
    }

    /// Returns the maximum number of ids of a set of this window, if that is limited.
    fn window_limit(&self, window: Window) -> Option<u64> {
        let is_main = window.length() == self.config.window_lengths.main();
        self.config.window_limit.filter(|_| is_main)
    }

    /// Records ids of several sets of one node in one command.
    ///
    /// The cost is in the number of commands. Returns the answers of each set whose ids are
    /// recorded.
    async fn add_together(&self, sets: &[Set<'_, H>]) -> Vec<Option<Vec<Answer>>> {
        let of_none = || vec![None; sets.len()];
        // The first ids of a set come with its expiry. Added alone, they would stay forever if
        // their answer was lost and no request came again.
        let together = || sets.iter().filter(|set| set.expires);
        let (Some(first), Some(_)) = (together().next(), together().nth(1)) else {
            return of_none();
        };
        let alone = sets.iter().any(|set| set.limit.is_some()) || H::POLICY == Policy::PerRequest;
        if alone || !together().all(|set| Rc::ptr_eq(&set.node, &first.node)) {
            return of_none();
        }
        // Without an answer, each set is tried alone, which shows the reason.
        let script = add_together(together().map(Set::parts));
        let Ok(known) = self.evaluate(script, Some(&first.key)).await else {
            return of_none();
        };
        let mut known = known.iter().map(known_to_be);
        let of_set = |set: &Set<'_, H>| {
            if !set.expires {
                return None;
            }
            let answers: Vec<Option<Answer>> = known.by_ref().take(set.members.len()).collect();
            answers.into_iter().collect()
        };
        sets.iter().map(of_set).collect()
    }

    /// Records the ids of one set.
    async fn add(&self, set: &Set<'_, H>) -> Result<Vec<Answer>, RedisError> {
        let Set { key, members, .. } = set;
        if members.is_empty() {
            return Ok(Vec::new());
        }
        if H::POLICY == Policy::PerRequest || !set.expires {
            return self.add_at_once(key, members, set.limit).await;
        }
        let script = match set.limit {
            None if members.len() < TOGETHER_FROM => return self.add_each(key, members).await,
            None => add_together(std::iter::once(set.parts())),
            limit => add_within(key, limit, None, members),
        };
        let known = self.evaluate(script, Some(key)).await?;
        Ok(known.iter().filter_map(known_to_be).collect())
    }

    /// Records ids of one set, each in a command of its own.
    async fn add_each(&self, key: &str, members: &[String]) -> Result<Vec<Answer>, RedisError> {
        self.with_retry(key, async |via| {
            let adds = members.iter().map(async |member| {
                match via.execute("SADD", [key, member].map(text)).await?.as_slice() {
                    [Reply::Number(0)] => Ok(Ok(Outcome::Duplicate)),
                    [Reply::Number(_)] => Ok(Ok(Outcome::New)),
                    _ => Err(RedisError::UnexpectedType),
                }
            });
            // `ASKING` applies only to the next command, so these commands run one at a time.
            let at_once = if via.asking { 1 } else { TOGETHER_FROM };
            let added = stream::iter(adds).buffered(at_once).try_collect().await?;
            self.replicated(via, Some(key)).await?;
            Ok(added)
        })
        .await
    }

    /// Records ids of one set, up to a limit, and sets its expiry, in one round trip.
    pub async fn add_at_once(
        &self,
        key: &str,
        members: &[String],
        limit: Option<u64>,
    ) -> Result<Vec<Answer>, RedisError> {
        let again = self.config.wait_replicas > 0;
        let script = add_within(key, limit, Some(again), members);
        let known = self.evaluate(script, None).await?;
        Ok(known.iter().filter_map(known_to_be).collect())
    }

    /// Sets the expiry of a set of ids, unless it has one.
    ///
    /// The reporter may have set a later one.
    pub(super) async fn expire(&self, key: &str) -> Result<(), RedisError> {
        let script = keep(key, false);
        self.with_retry(key, async |via| via.run(&script).await).await.map(drop)
    }
}

impl<H: Host> Set<'_, H> {
    fn parts(&self) -> (&str, &[String]) {
        (&self.key, &self.members)
    }
}

/// Parses the answer of a script for one id.
fn known_to_be(reply: &Reply) -> Option<Answer> {
    match reply {
        Reply::Number(number) => added(*number),
        _ => None,
    }
}
