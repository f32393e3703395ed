//! Recording ids: in Redis, or else in the spool, and their window in the index.

use std::collections::BTreeMap;
use std::rc::Rc;

use futures::future;
use verve_protocol::{Id, Partition};

use super::Instance;
use crate::answer::{Answer, Limit, NotCounted, Outcome};
use crate::circuit::OPEN_MS;
use crate::config::Policy;
use crate::counted::Place;
use crate::ports::{Host, unique_name};
use crate::queue::{Recorded, Taking, Turn, Waiter};
use crate::redis::Node;
use crate::redis_error::RedisError;
use crate::sets::{by_partition, in_order};
use crate::spooled::Batch;
use crate::stats::index;

impl<H: Host> Instance<H> {
    /// Records an id of a window, together with others that come while a node is asked.
    pub(super) async fn record_id(self: &Rc<Self>, place: &Place, id: Id) -> Recorded<Answer> {
        self.forget_after_reconnect();
        let is_seen = place.counted.seen.has(place.window, id);
        let node = self.node_of(place, id.partition(self.config.partitions));
        if is_seen && node.answered_lately() {
            return Ok(Ok(Outcome::Duplicate));
        }
        let (taking, since_ms) = match node.queue.wait(place, id).await {
            Turn::Recorded(recorded) => return recorded,
            Turn::Take(taking, since_ms) => (taking, since_ms),
        };
        let recorded = self.record_ids(place, &[id], since_ms).await.pop();
        // Those that came meanwhile.
        let waiters = taking.take();
        if !waiters.is_empty() {
            self.host.spawn(record_waiting(self.clone(), taking, waiters));
        }
        recorded.unwrap_or(Ok(Err(NotCounted::Unavailable)))
    }

    /// Forgets what a server knew to which the connection was opened again since: it may have lost its data.
    fn forget_after_reconnect(&self) {
        let reconnects = self.redis.reconnects();
        if self.reconnects.replace(reconnects) != reconnects {
            self.counters.forget();
        }
    }

    /// Records ids of a window in Redis, or else in the spool. Answers what came of each. If they have waited, it was since `since_ms` by the monotonic clock: for
    /// too long, and they go to the spool.
    pub(super) async fn record_ids(
        self: &Rc<Self>,
        place: &Place,
        ids: &[Id],
        since_ms: Option<u64>,
    ) -> Vec<Recorded<Answer>> {
        let partitions = self.config.partitions;
        let sets = by_partition(ids, partitions);
        for partition in sets.keys() {
            let node = self.node_of(place, *partition);
            if node.is_due() {
                // Not by these ids: others would wait behind them.
                self.host.spawn(look_whether_back(self.clone(), node));
            }
        }
        self.forget_after_reconnect();
        let reconnects = self.redis.reconnects();
        let is_known = !place.is_to_be_indexed();
        let until_ms = match H::POLICY {
            Policy::Kept => since_ms.unwrap_or_else(|| self.host.monotonic_ms()) + self.patience_ms(),
            // There is nowhere else to put them.
            Policy::Once => u64::MAX,
        };
        let added = if since_ms.is_some() && self.host.monotonic_ms() > until_ms {
            Err(self.no_answer())
        } else {
            self.add_ids(place, &sets, until_ms).await
        };
        let added = match added {
            Ok(Ok(added)) if is_known && self.redis.reconnects() != reconnects => {
                self.add_again(place, &sets, added, until_ms).await
            }
            added => added,
        };
        let added = match added {
            Ok(Ok(added)) => added,
            Ok(Err(limit)) => return vec![Ok(Err(NotCounted::Limited(limit))); ids.len()],
            // Of a named counter Redis is told when they are brought there.
            Err(error) => Added::of_sets(sets.iter().map(|_| Err(error.clone())).collect()),
        };
        self.in_order(place, ids, sets, added, reconnects).await
    }

    /// Adds ids in Redis, and answers what came of them, or the limit beyond which their counter is. Each step has its own time limit.
    /// None that could be done without begins after `until_ms`, by the monotonic clock.
    async fn add_ids(
        &self,
        place: &Place,
        sets: &BTreeMap<Partition, Vec<Id>>,
        until_ms: u64,
    ) -> Result<Result<Added, Limit>, RedisError> {
        if place.is_to_be_told() {
            if let Some(limit) = self.tell_counter(place).await? {
                return Ok(Err(limit));
            }
            if self.host.monotonic_ms() > until_ms {
                return Err(self.no_answer());
            }
        }
        let adding = self.redis.add_ids(place, sets);
        if !place.is_to_be_indexed() {
            return Ok(Ok(Added::of_sets(adding.await)));
        }
        // At the same time, on another node perhaps: nothing is answered before both have ended.
        let (indexed, of_sets) = future::join(self.index(place), adding).await;
        // Of what is not added, the index hears when it is drained.
        let is_added = |answers: &Result<Vec<Answer>, RedisError>| {
            (answers.as_ref()).is_ok_and(|answers| answers.iter().any(Result::is_ok))
        };
        let indexed = match indexed {
            Err(redis) if of_sets.iter().any(is_added) => self.spool_index(place, redis).await,
            _ => Ok(()),
        };
        Ok(Ok(Added { of_sets, indexed }))
    }

    /// Adds ids again that were added while a connection was lost and opened again. Redis may have lost its data before it was given them, and with these
    /// that the set expires, that its window is in the index, and whose counter it is; and whoever adds an id where that is known does not say so again.
    async fn add_again(
        &self,
        place: &Place,
        sets: &BTreeMap<Partition, Vec<Id>>,
        first: Added,
        until_ms: u64,
    ) -> Result<Result<Added, Limit>, RedisError> {
        self.forget_after_reconnect();
        let again = self.add_ids(place, sets, until_ms).await?;
        Ok(again.map(|again| {
            // What was new the first time is a duplicate now.
            let of_sets = first.of_sets.into_iter().zip(again.of_sets);
            let of_sets = of_sets.map(|(first, again)| again.map(|again| first.unwrap_or(again)));
            Added {
                of_sets: of_sets.collect(),
                ..again
            }
        }))
    }

    /// How long an id waits at most until something is asked of Redis for it, in milliseconds: as long as two attempts take.
    fn patience_ms(&self) -> u64 {
        2 * self.config.redis_timeout.as_millis() as u64
    }

    /// Redis has taken its time for others.
    fn no_answer(&self) -> RedisError {
        RedisError::NoAnswer {
            within_ms: self.patience_ms(),
        }
    }

    /// What came of each id, by what came of those of each set. What is not in Redis is spooled.
    async fn in_order(
        self: &Rc<Self>,
        place: &Place,
        ids: &[Id],
        sets: BTreeMap<Partition, Vec<Id>>,
        Added { of_sets, indexed }: Added,
        reconnects: u64,
    ) -> Vec<Recorded<Answer>> {
        let mut recorded = BTreeMap::new();
        for ((partition, ids), added) in sets.iter().zip(of_sets) {
            let answers = match &indexed {
                Err(error) if added.is_ok() => Err(error.clone()),
                _ => self.recorded(place, *partition, ids, added, reconnects).await,
            };
            recorded.insert(*partition, answers);
        }
        in_order(ids, self.config.partitions, recorded)
    }

    fn node_of(&self, place: &Place, partition: Partition) -> Rc<Node<H>> {
        self.redis.node_of(|| place.ids(partition))
    }

    /// Spools ids of one set that Redis did not record. `reconnects` are those before they were added.
    async fn recorded(
        self: &Rc<Self>,
        place: &Place,
        partition: Partition,
        ids: &[Id],
        added: Result<Vec<Answer>, RedisError>,
        reconnects: u64,
    ) -> Recorded<Vec<Answer>> {
        let node = self.node_of(place, partition);
        match added {
            Ok(answers) => {
                let recorded = ids.iter().zip(&answers);
                let recorded = recorded.filter(|(_, answer)| answer.is_ok());
                // Otherwise it may be that a server has them that has lost its data since.
                if self.redis.reconnects() == reconnects {
                    self.counters.add_seen(place, recorded.map(|(id, _)| id));
                }
                if node.told_away.get() != 0 {
                    let instance = self.clone();
                    self.host.spawn(async move { instance.tell_well(&node).await });
                }
                Ok(answers)
            }
            Err(redis) => {
                self.counters.forget();
                let spooling = self.spool.add_ids(place.ids(partition), ids);
                let spooled = self.in_time(spooling).await;
                self.spooled(redis, spooled)?;
                let now = self.host.monotonic_ms();
                if node.circuit.is_open() && node.told_away.get() < now {
                    node.told_away.set(now + OPEN_MS);
                    let instance = self.clone();
                    self.host.spawn(async move { instance.tell_away(&node).await });
                }
                Ok(vec![Ok(Outcome::Spooled); ids.len()])
            }
        }
    }

    /// Adds the window to the index, once for each window. Where the index is away, the spool may have it already.
    async fn index(&self, place: &Place) -> Result<(), RedisError> {
        let Place { counted, window } = place;
        let partitions = self.config.partitions.count();
        match self.redis.index(&counted.keys, *window, partitions).await {
            Ok(()) => {
                counted.indexed.set(Some(*window));
                counted.index_spooled.set(None);
                Ok(())
            }
            Err(_) if counted.index_spooled.get() == Some(*window) => Ok(()),
            Err(redis) => Err(redis),
        }
    }

    /// Puts the window's entry of the index into the spool. An id is not `ok` without it: in a cluster, the index may be away while the id's
    /// set is not, and a set of a window that the reporter does not expect would be counted by nobody.
    async fn spool_index(&self, place: &Place, redis: RedisError) -> Recorded<()> {
        let Place { counted, window } = place;
        let (name, now_ms) = (unique_name(&self.host), self.host.now_ms());
        let entry = index(&counted.keys, *window, now_ms, self.config.partitions.count());
        let batch = Batch::new(&counted.keys, name, entry.into());
        let spooled = self.in_time(self.spool.add_batch(&batch, 0)).await;
        self.spooled(redis, spooled)?;
        counted.index_spooled.set(Some(*window));
        Ok(())
    }
}

/// What came of ids in Redis.
struct Added {
    /// Of those of each set.
    of_sets: Vec<Result<Vec<Answer>, RedisError>>,
    /// Whether the index has their window, or the spool its entry.
    indexed: Recorded<()>,
}

impl Added {
    /// Where nothing keeps the index from having their window.
    const fn of_sets(of_sets: Vec<Result<Vec<Answer>, RedisError>>) -> Self {
        Self {
            of_sets,
            indexed: Ok(()),
        }
    }
}

/// Records ids that wait for a node, then those that have come meanwhile, until there are none.
async fn record_waiting<H: Host>(
    instance: Rc<Instance<H>>,
    taking: Taking<H, Place, Answer>,
    mut waiters: Vec<Waiter<H, Place, Answer>>,
) {
    while let Some(place) = waiters.first().map(|first| first.place.clone()) {
        let ids: Vec<Id> = waiters.iter().map(|waiter| waiter.id).collect();
        let since_ms = waiters.iter().map(|waiter| waiter.since_ms).min();
        let recorded = instance.record_ids(&place, &ids, since_ms).await;
        let recorded = waiters.into_iter().zip(recorded);
        recorded.for_each(|(waiter, recorded)| waiter.done(recorded));
        waiters = taking.take();
    }
}

/// Asks a node that was away whether it is back.
async fn look_whether_back<H: Host>(instance: Rc<Instance<H>>, node: Rc<Node<H>>) {
    if node.is_back().await {
        instance.tell_well(&node).await;
    }
}
