//! Recording ids in as few commands as possible.
//!
//! The ids of one node that wait at the same time are recorded together.

use std::collections::BTreeMap;
use std::rc::Rc;

use futures::{StreamExt, TryStreamExt, future, stream};
use verve_protocol::{Id, Partition};

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

/// The number of ids from which they are added by one script.
///
/// The script runs two commands and is one itself, so it costs Redis no more commands than there
/// are ids.
const TOGETHER_FROM: usize = 3;

/// Ids to be recorded in one set.
struct Set<H: Host> {
    partition: Partition,
    key: String,
    /// Whether the set is known to have an expiry.
    expires: bool,
    /// The node of the set, as far as is known.
    node: Rc<Node<H>>,
    distinct: Distinct,
    /// The members to add, each once.
    members: Vec<String>,
}

impl<H: Host> Redis<H> {
    /// Records ids in the sets of a window. Returns the answers of each set.
    ///
    /// The first of several equal ids is the new one.
    pub async fn add_ids(
        &self,
        counter_window: &CounterWindow,
        sets: &BTreeMap<Partition, Vec<Id>>,
    ) -> Vec<Result<Vec<Answer>, RedisError>> {
        let set = |(partition, ids): (&Partition, &Vec<Id>)| {
            let distinct = Distinct::of(ids);
            let key = counter_window.ids(*partition);
            Set {
                partition: *partition,
                node: self.node_of(|| &key),
                key,
                expires: counter_window.state.expires(counter_window.window, *partition),
                members: distinct.members(),
                distinct,
            }
        };
        let sets: Vec<Set<H>> = sets.iter().map(set).collect();
        let together = self.add_together(&sets).await;
        let mut adding = sets.iter().zip(together).map(async |(set, together)| {
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
        let recorded = sets.iter().zip(&answers).filter(|(_, answers)| answers.is_ok());
        recorded.for_each(|(set, _)| counter_window.state.has_expiry(counter_window.window, set.partition));
        answers
    }

    /// Records ids of several sets of one node in one command.
    ///
    /// The cost is in the number of commands. Returns the answers of each set whose ids are
    /// recorded.
    async fn add_together(&self, sets: &[Set<H>]) -> Vec<Option<Vec<Answer>>> {
        let of_none = || vec![None; sets.len()];
        // The first ids of a set come with its expiry. Added alone, they would stay forever if
        // their answer was lost and no request came again.
        let together = || sets.iter().filter(|set| set.expires);
        let (Some(first), Some(_)) = (together().next(), together().nth(1)) else {
            return of_none();
        };
        let alone = self.config.window_limit.is_some() || H::POLICY == Policy::PerRequest;
        if alone || !together().all(|set| Rc::ptr_eq(&set.node, &first.node)) {
            return of_none();
        }
        // Without an answer, each set is tried alone, which shows the reason.
        let script = add_together(together().map(Set::parts));
        let Ok(known) = self.evaluate(script, Some(&first.key)).await else {
            return of_none();
        };
        let mut known = known.iter().map(known_to_be);
        let of_set = |set: &Set<H>| {
            if !set.expires {
                return None;
            }
            let answers: Vec<Option<Answer>> = known.by_ref().take(set.members.len()).collect();
            answers.into_iter().collect()
        };
        sets.iter().map(of_set).collect()
    }

    /// Records the ids of one set.
    async fn add(&self, set: &Set<H>) -> Result<Vec<Answer>, RedisError> {
        let Set { key, members, .. } = set;
        if H::POLICY == Policy::PerRequest || !set.expires {
            return self.add_at_once(key, members).await;
        }
        let script = match self.config.window_limit {
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

    /// Records ids of one set and sets its expiry, in one round trip.
    pub async fn add_at_once(&self, key: &str, members: &[String]) -> Result<Vec<Answer>, RedisError> {
        let again = self.config.wait_replicas > 0;
        let script = add_within(key, self.config.window_limit, Some(again), members);
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

impl<H: Host> Set<H> {
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
