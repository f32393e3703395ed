//! Recording ids in Redis or else in the spool, and their window in the index.

use std::collections::BTreeMap;
use std::rc::Rc;

use futures::future;
use verve_protocol::{Id, Partition};

use super::Instance;
use crate::answer::{Answer, Limit, NotCounted, Outcome};
use crate::circuit::OPEN_MS;
use crate::config::Policy;
use crate::counter_state::CounterWindow;
use crate::ports::{Host, unique_name};
use crate::queue::{Permit, Recorded, Taking, Waiter};
use crate::redis::Node;
use crate::redis_error::RedisError;
use crate::sets::{by_partition, in_order};
use crate::spooled::Batch;
use crate::stats::index;

impl<H: Host> Instance<H> {
    /// Records an id of a window, together with ids that arrive while a node is asked.
    pub(super) async fn record_id(self: &Rc<Self>, counter_window: &CounterWindow, id: Id) -> Recorded<Answer> {
        self.forget_after_change();
        let is_seen = counter_window.state.dedup.has(counter_window.window, id);
        let node = self.node_of(counter_window, id.partition(self.config.partitions));
        if is_seen && node.answered_lately() {
            return Ok(Ok(Outcome::Duplicate));
        }
        let (taking, since_ms) = match node.queue.wait(counter_window, id).await {
            Permit::Recorded(recorded) => return recorded,
            Permit::Take(taking, since_ms) => (taking, since_ms),
        };
        let recorded = self.record_ids(counter_window, &[id], since_ms).await.pop();
        // The ids that arrived meanwhile.
        let waiters = taking.take();
        if !waiters.is_empty() {
            self.host.spawn(record_waiting(self.clone(), taking, waiters));
        }
        recorded.unwrap_or(Ok(Err(NotCounted::Unavailable)))
    }

    /// Forgets the state of Redis after a change of a server, which may lack data.
    fn forget_after_change(&self) {
        let changes = self.redis.changes();
        if self.changes.replace(changes) != changes {
            self.counters.forget();
        }
    }

    /// Records ids of a window in Redis, or else in the spool. Returns their answers.
    ///
    /// `since_ms` is set if the ids have waited: it is the time when they began to wait, by the
    /// monotonic clock. If they have waited too long, they go to the spool.
    pub(super) async fn record_ids(
        self: &Rc<Self>,
        counter_window: &CounterWindow,
        ids: &[Id],
        since_ms: Option<u64>,
    ) -> Vec<Recorded<Answer>> {
        let partitions = self.config.partitions;
        let sets = by_partition(ids, partitions);
        for partition in sets.keys() {
            let node = self.node_of(counter_window, *partition);
            if node.is_due() {
                // A separate task probes. If these ids did, others would wait behind them.
                self.host.spawn(look_whether_back(self.clone(), node));
            }
        }
        self.forget_after_change();
        let changes = self.redis.changes();
        let is_known = !counter_window.must_be_indexed();
        let until_ms = match H::POLICY {
            Policy::LongLived => since_ms.unwrap_or_else(|| self.host.monotonic_ms()) + self.patience_ms(),
            // There is no spool for these ids.
            Policy::PerRequest => u64::MAX,
        };
        let added = if since_ms.is_some() && self.host.monotonic_ms() > until_ms {
            Err(self.no_answer())
        } else {
            self.add_ids(counter_window, &sets, until_ms).await
        };
        let added = match added {
            Ok(Ok(added)) if is_known && added.of_sets.iter().any(has_added) && self.redis.changes() != changes => {
                self.add_again(counter_window, &sets, added, until_ms).await
            }
            added => added,
        };
        let added = match added {
            Ok(Ok(added)) => added,
            Ok(Err(limit)) => return vec![Ok(Err(NotCounted::Limited(limit))); ids.len()],
            // A named counter is registered when its ids are drained into Redis.
            Err(error) => Added::of_sets(sets.iter().map(|_| Err(error.clone())).collect()),
        };
        self.in_order(counter_window, ids, sets, added, changes).await
    }

    /// Adds ids in Redis.
    ///
    /// Returns their answers, or the limit that their counter exceeds.
    ///
    /// Each step has its own time limit. After `until_ms`, by the monotonic clock, the ids are not
    /// added any more: the caller spools them.
    async fn add_ids(
        &self,
        counter_window: &CounterWindow,
        sets: &BTreeMap<Partition, Vec<Id>>,
        until_ms: u64,
    ) -> Result<Result<Added, Limit>, RedisError> {
        if counter_window.must_be_registered() {
            if let Some(limit) = self.register_counter(counter_window).await? {
                return Ok(Err(limit));
            }
            if self.host.monotonic_ms() > until_ms {
                return Err(self.no_answer());
            }
        }
        let adding = self.redis.add_ids(counter_window, sets);
        if !counter_window.must_be_indexed() {
            return Ok(Ok(Added::of_sets(adding.await)));
        }
        // In parallel, because the index may be on another node. The answer waits for both.
        let (indexed, of_sets) = future::join(self.index(counter_window), adding).await;
        // Ids that are not added need no index entry yet: draining adds it.
        let indexed = match indexed {
            Err(redis) if of_sets.iter().any(has_added) => self.spool_index(counter_window, redis).await,
            _ => Ok(()),
        };
        Ok(Ok(Added { of_sets, indexed }))
    }

    /// Adds ids again if a server may have been replaced while they were added.
    ///
    /// Redis may have lost its data before it received the ids. Then the expiry of the set, the
    /// index entry of its window and the registration of its counter are lost too, and a request
    /// for which these are known does not write them again.
    async fn add_again(
        &self,
        counter_window: &CounterWindow,
        sets: &BTreeMap<Partition, Vec<Id>>,
        first: Added,
        until_ms: u64,
    ) -> Result<Result<Added, Limit>, RedisError> {
        // Another id may have forgotten all before this one was answered. The answer then noted
        // again that its set expires.
        self.counters.forget();
        let again = self.add_ids(counter_window, sets, until_ms).await?;
        Ok(again.map(|again| {
            let of_sets = first.of_sets.into_iter().zip(again.of_sets);
            let of_sets = of_sets.map(|(first, again)| again.map(|again| merged(first, again)));
            Added {
                of_sets: of_sets.collect(),
                ..again
            }
        }))
    }

    /// Returns how long an id waits at most before Redis is asked for it.
    ///
    /// In milliseconds: as long as two attempts take.
    fn patience_ms(&self) -> u64 {
        2 * self.config.redis_timeout.as_millis() as u64
    }

    /// Returns the error for ids that waited too long while Redis served others.
    fn no_answer(&self) -> RedisError {
        RedisError::NoAnswer {
            within_ms: self.patience_ms(),
        }
    }

    /// Returns the answer of each id, from the answers of each set.
    ///
    /// Ids that are not in Redis are spooled.
    async fn in_order(
        self: &Rc<Self>,
        counter_window: &CounterWindow,
        ids: &[Id],
        sets: BTreeMap<Partition, Vec<Id>>,
        Added { of_sets, indexed }: Added,
        changes: u64,
    ) -> Vec<Recorded<Answer>> {
        let mut recorded = BTreeMap::new();
        for ((partition, ids), added) in sets.iter().zip(of_sets) {
            let answers = match &indexed {
                Err(error) if added.is_ok() => Err(error.clone()),
                _ => self.recorded(counter_window, *partition, ids, added, changes).await,
            };
            recorded.insert(*partition, answers);
        }
        in_order(ids, self.config.partitions, recorded)
    }

    fn node_of(&self, counter_window: &CounterWindow, partition: Partition) -> Rc<Node<H>> {
        self.redis.node_of(|| counter_window.ids(partition))
    }

    /// Remembers the ids of one set that Redis recorded, or spools them if it failed.
    ///
    /// `changes` is the number of changes of servers before the ids were added.
    async fn recorded(
        self: &Rc<Self>,
        counter_window: &CounterWindow,
        partition: Partition,
        ids: &[Id],
        added: Result<Vec<Answer>, RedisError>,
        changes: u64,
    ) -> Recorded<Vec<Answer>> {
        let node = self.node_of(counter_window, partition);
        match added {
            Ok(answers) => {
                let recorded = ids.iter().zip(&answers);
                let recorded = recorded.filter(|(_, answer)| answer.is_ok());
                // After a change, the server that recorded the ids may have lost its data.
                if self.redis.changes() == changes {
                    self.counters.add_seen(counter_window, recorded.map(|(id, _)| id));
                }
                if node.marked_down_until.get() != 0 {
                    let instance = self.clone();
                    self.host.spawn(async move { instance.mark_up(&node).await });
                }
                Ok(answers)
            }
            Err(redis) => {
                self.counters.forget();
                let spooling = self.spool.add_ids(counter_window.ids(partition), ids);
                let spooled = self.in_time(spooling).await;
                self.spooled(redis, spooled)?;
                let now = self.host.monotonic_ms();
                if node.circuit.is_open() && node.marked_down_until.get() < now {
                    node.marked_down_until.set(now + OPEN_MS);
                    let instance = self.clone();
                    self.host.spawn(async move { instance.mark_down(&node).await });
                }
                Ok(vec![Ok(Outcome::Spooled); ids.len()])
            }
        }
    }

    /// Adds the window to the index, once for each window.
    ///
    /// If the index is unreachable, an entry in the spool is enough.
    async fn index(&self, counter_window: &CounterWindow) -> Result<(), RedisError> {
        let CounterWindow { state, window } = counter_window;
        let partitions = self.config.partitions.count();
        match self.redis.index(&state.keys, *window, partitions).await {
            Ok(()) => {
                state.indexed.set(Some(*window));
                state.index_spooled.set(None);
                Ok(())
            }
            Err(_) if state.index_spooled.get() == Some(*window) => Ok(()),
            Err(redis) => Err(redis),
        }
    }

    /// Adds the window's index entry to the spool.
    ///
    /// An id is not `ok` without this entry. In a cluster, the index may be unreachable while the
    /// id's set is reachable. A set of a window that the reporter does not expect would then never
    /// be counted.
    async fn spool_index(&self, counter_window: &CounterWindow, redis: RedisError) -> Recorded<()> {
        let CounterWindow { state, window } = counter_window;
        let (name, now_ms) = (unique_name(&self.host), self.host.now_ms());
        let entry = index(&state.keys, *window, now_ms, self.config.partitions.count());
        let batch = Batch::new(&state.keys, name, entry.into());
        let spooled = self.in_time(self.spool.add_batch(&batch, 0)).await;
        self.spooled(redis, spooled)?;
        state.index_spooled.set(Some(*window));
        Ok(())
    }
}

/// The outcome of ids in Redis.
struct Added {
    /// The answers, by set.
    of_sets: Vec<Result<Vec<Answer>, RedisError>>,
    /// Whether the index has their window, or the spool has the entry.
    indexed: Recorded<()>,
}

/// Returns whether ids of a set were added.
fn has_added(answers: &Result<Vec<Answer>, RedisError>) -> bool {
    answers.as_ref().is_ok_and(|answers| answers.iter().any(Result::is_ok))
}

/// Returns the answers of ids that were added twice.
///
/// An id that was new the first time is a duplicate the second time.
fn merged(first: Result<Vec<Answer>, RedisError>, again: Vec<Answer>) -> Vec<Answer> {
    let Ok(first) = first else {
        return again;
    };
    let both = first.into_iter().zip(again);
    both.map(|(first, again)| again.and_then(|again| first.or(Ok(again))))
        .collect()
}

impl Added {
    /// Returns the outcome of ids whose index entry did not fail.
    const fn of_sets(of_sets: Vec<Result<Vec<Answer>, RedisError>>) -> Self {
        Self {
            of_sets,
            indexed: Ok(()),
        }
    }
}

/// Records the ids that wait for a node, until none wait.
async fn record_waiting<H: Host>(
    instance: Rc<Instance<H>>,
    taking: Taking<H, CounterWindow, Answer>,
    mut waiters: Vec<Waiter<H, CounterWindow, Answer>>,
) {
    while let Some(counter_window) = waiters.first().map(|first| first.counter_window.clone()) {
        let ids: Vec<Id> = waiters.iter().map(|waiter| waiter.id).collect();
        let since_ms = waiters.iter().map(|waiter| waiter.since_ms).min();
        let recorded = instance.record_ids(&counter_window, &ids, since_ms).await;
        let recorded = waiters.into_iter().zip(recorded);
        recorded.for_each(|(waiter, recorded)| waiter.done(recorded));
        waiters = taking.take();
    }
}

/// Probes a node that was unreachable.
async fn look_whether_back<H: Host>(instance: Rc<Instance<H>>, node: Rc<Node<H>>) {
    if node.is_back().await {
        instance.mark_up(&node).await;
    }
}
