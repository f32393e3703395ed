//! Recording ids: those of one node that wait at the same time by as few commands as there can be.

use std::collections::BTreeMap;
use std::rc::Rc;

use futures::{StreamExt, TryStreamExt, future, stream};
use verve_protocol::scripts::{ADD_TOGETHER, ADD_WITHIN};
use verve_protocol::{Id, Partition};

use super::{Node, Redis, text};
use crate::answer::{Answer, Outcome};
use crate::config::Policy;
use crate::counted::Place;
use crate::expiry::end_of;
use crate::limits::added;
use crate::ports::Host;
use crate::redis_error::RedisError;
use crate::reply::Reply;
use crate::sets::Distinct;

/// From how many ids on they are added together: the script runs two commands and is one itself, so that it costs Redis no
/// more commands than there are ids.
const TOGETHER_FROM: usize = 3;

/// Ids to be recorded in one set.
struct Set<H: Host> {
    key: String,
    /// Where they are, as far as is known.
    node: Rc<Node<H>>,
    distinct: Distinct,
    /// These of it, each once.
    members: Vec<String>,
}

impl<H: Host> Redis<H> {
    /// Records ids in the sets of a window. Answers for each set what came of its ids: the first of several equal ones is the new one. After
    /// `until_ms`, by the monotonic clock, nothing is begun that can wait.
    pub async fn add_ids(
        &self,
        place: &Place,
        sets: &BTreeMap<Partition, Vec<Id>>,
        until_ms: u64,
    ) -> Vec<Result<Vec<Answer>, RedisError>> {
        let set = |(partition, ids): (&Partition, &Vec<Id>)| {
            let distinct = Distinct::of(ids);
            let key = place.ids(*partition);
            Set {
                node: self.node_of(|| &key),
                key,
                members: distinct.members(),
                distinct,
            }
        };
        let of_each: Vec<Set<H>> = sets.iter().map(set).collect();
        let together = self.add_together(&of_each).await;
        let left = of_each.iter().zip(&together).filter(|(_, added)| added.is_none());
        let left: Vec<&Set<H>> = left.map(|(set, _)| set).collect();
        let alone = match left.as_slice() {
            [set] => vec![self.add(set).await],
            sets => future::join_all(sets.iter().map(|set| self.add(set))).await,
        };
        let mut alone = alone.into_iter();
        let mut answers = Vec::new();
        let mut expiring = Vec::new();
        for ((set, partition), together) in of_each.iter().zip(sets.keys()).zip(together) {
            // Each that was not recorded together was recorded alone.
            let added = together.map(Ok).or_else(|| alone.next()).unwrap_or(Ok(Vec::new()));
            let added = added.and_then(|added| {
                let answers = set.distinct.answers(&added);
                answers.ok_or_else(|| RedisError::UnexpectedLength(set.key.clone()))
            });
            let expires = self.policy == Policy::Once || place.counted.expires(place.window, *partition);
            if added.is_ok() && !expires {
                expiring.push((&set.key, partition));
            }
            answers.push(added);
        }
        if expiring.is_empty() || self.host.monotonic_ms() > until_ms {
            return answers;
        }
        future::join_all(expiring.into_iter().map(async |(key, partition)| {
            // If it is not set, the ids are recorded all the same; the next ones set it.
            if self.expire(key).await.is_ok() {
                place.counted.has_expiry(place.window, *partition);
            }
        }))
        .await;
        answers
    }

    /// Records ids of several sets of one node by one command, since commands are what costs. Answers for each set what came of its ids, if
    /// they are recorded.
    async fn add_together(&self, sets: &[Set<H>]) -> Vec<Option<Vec<Answer>>> {
        let of_none = vec![None; sets.len()];
        let [first, others @ ..] = sets else {
            return of_none;
        };
        let alone = self.config.window_limit.is_some() || self.policy == Policy::Once;
        if others.is_empty() || alone || !others.iter().all(|set| Rc::ptr_eq(&set.node, &first.node)) {
            return of_none;
        }
        // Without an answer each set is tried by itself, which tells why.
        let together = self.evaluate(&first.key, add_together(sets), Some(&first.key));
        let Ok(known) = together.await else {
            return of_none;
        };
        let mut known = known.iter().map(known_to_be);
        let of_set = |set: &Set<H>| {
            let answers: Vec<Option<Answer>> = known.by_ref().take(set.members.len()).collect();
            answers.into_iter().collect()
        };
        sets.iter().map(of_set).collect()
    }

    /// Records the ids of one set.
    async fn add(&self, set: &Set<H>) -> Result<Vec<Answer>, RedisError> {
        let Set { key, members, .. } = set;
        if self.policy == Policy::Once {
            return self.add_at_once(key, members).await;
        }
        let arguments = match self.config.window_limit {
            None if members.len() < TOGETHER_FROM => {
                return self
                    .twice(key, async |via| {
                        let adds = members.iter().map(async |member| {
                            match via.execute("SADD", [key, member].map(text)).await?.as_slice() {
                                [Reply::Number(0)] => Ok(Ok(Outcome::Duplicate)),
                                [Reply::Number(_)] => Ok(Ok(Outcome::New)),
                                _ => Err(RedisError::UnexpectedType),
                            }
                        });
                        // What a node has to be asked for comes by itself.
                        let at_once = if via.asking { 1 } else { TOGETHER_FROM };
                        let added = stream::iter(adds).buffered(at_once).try_collect().await?;
                        self.replicated(via, Some(key)).await?;
                        Ok(added)
                    })
                    .await;
            }
            None => add_together(std::slice::from_ref(set)),
            Some(_) => self.add_within(key, "", "", members),
        };
        let known = self.evaluate(key, arguments, Some(key)).await?;
        Ok(known.iter().filter_map(known_to_be).collect())
    }

    /// Records ids of one set, and has it expire, in one trip.
    pub async fn add_at_once(&self, key: &str, members: &[String]) -> Result<Vec<Answer>, RedisError> {
        let waits = if self.config.wait_replicas > 0 { "1" } else { "" };
        let arguments = self.add_within(key, &end_of(key).to_string(), waits, members);
        let known = self.evaluate(key, arguments, None).await?;
        Ok(known.iter().filter_map(known_to_be).collect())
    }

    /// The arguments of [`ADD_WITHIN`].
    fn add_within(&self, key: &str, ends: &str, waits: &str, members: &[String]) -> Vec<String> {
        let limit = self.config.window_limit.map(|limit| limit.to_string());
        let arguments = [ADD_WITHIN, "1", key, &limit.unwrap_or_default(), ends, waits];
        arguments.map(text).into_iter().chain(members.iter().cloned()).collect()
    }
}

/// The arguments of [`ADD_TOGETHER`].
fn add_together<H: Host>(sets: &[Set<H>]) -> Vec<String> {
    let key = sets.first().map_or("", |set| &set.key);
    let mut arguments = [ADD_TOGETHER, "1", key].map(text).to_vec();
    for Set { key, members, .. } in sets {
        arguments.extend([text(key), text(members.len().to_string())]);
        arguments.extend(members.iter().map(text));
    }
    arguments
}

/// What a script says of an id.
fn known_to_be(said: &Reply) -> Option<Answer> {
    match said {
        Reply::Number(said) => added(*said),
        _ => None,
    }
}
