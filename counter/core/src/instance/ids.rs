//! Recording ids in Redis or else in the spool, and their window in the index.

use std::collections::BTreeMap;
use std::rc::Rc;

use futures::future;
use verve_protocol::{Id, Partition};

use super::Instance;
use crate::answer::{Answer, Answers, Limit, NotCounted, Outcome, in_all};
use crate::circuit::OPEN_MS;
use crate::config::Policy;
use crate::counter_state::CounterWindow;
use crate::ports::{Host, unique_name};
use crate::queue::{Permit, Recorded, Taking, Waiter};
use crate::redis::{Node, OfSet, OfSets};
use crate::redis_error::RedisError;
use crate::sets::{by_partition, in_order};
use crate::spooled::Batch;
use crate::stats::index;

impl<H: Host> Instance<H> {
    /// Records an id, together with ids that arrive while a node is asked.
    ///
    /// The window is a main one.
    pub(super) async fn record_id(self: &Rc<Self>, counter_window: &CounterWindow, id: Id) -> Recorded<Answers> {
        self.forget_after_change();
        let partition = id.partition(self.config.partitions);
        let is_seen = counter_window.state.dedup.has(counter_window.window, id);
        let answered_lately = |of: CounterWindow| self.node_of(&of, partition).answered_lately();
        if is_seen && counter_window.all().all(answered_lately) {
            return Ok(in_all(Ok(Outcome::Duplicate)));
        }
        let node = self.node_of(counter_window, partition);
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
        recorded.unwrap_or(Ok(in_all(Err(NotCounted::Unavailable))))
    }

    /// Forgets the state of Redis after a change of a server, which may lack data.
    fn forget_after_change(&self) {
        let changes = self.redis.changes();
        if self.changes.replace(changes) != changes {
            self.counters.forget();
        }
    }

    /// Records ids in Redis, or else in the spool. Returns their answers.
    ///
    /// They are recorded in this main window and in the longer ones that contain it, always in all
    /// of them. An earlier attempt may have recorded an id in some and failed in others.
    ///
    /// `since_ms` is set if the ids have waited: it is the time when they began to wait, by the
    /// monotonic clock. If they have waited too long, they go to the spool.
    pub(super) async fn record_ids(
        self: &Rc<Self>,
        counter_window: &CounterWindow,
        ids: &[Id],
        since_ms: Option<u64>,
    ) -> Vec<Recorded<Answers>> {
        let counter_windows: Vec<CounterWindow> = counter_window.all().collect();
        let partitions = self.config.partitions;
        let sets = by_partition(ids, partitions);
        for counter_window in &counter_windows {
            for partition in sets.keys() {
                let node = self.node_of(counter_window, *partition);
                if node.is_due() {
                    // A separate task probes. If these ids did, others would wait behind them.
                    self.host.spawn(look_whether_back(self.clone(), node));
                }
            }
        }
        self.forget_after_change();
        let changes = self.redis.changes();
        let is_known = counter_windows.iter().any(|window| !window.must_be_indexed());
        let until_ms = match H::POLICY {
            Policy::LongLived => since_ms.unwrap_or_else(|| self.host.monotonic_ms()) + self.patience_ms(),
            // There is no spool for these ids.
            Policy::PerRequest => u64::MAX,
        };
        let added = if since_ms.is_some() && self.host.monotonic_ms() > until_ms {
            Err(self.no_answer())
        } else {
            self.add_ids(&counter_windows, &sets, until_ms).await
        };
        let added = match added {
            Ok(Ok(added)) if is_known && added.iter().any(has_added) && self.redis.changes() != changes => {
                self.add_again(&counter_windows, &sets, added, until_ms).await
            }
            added => added,
        };
        let added = match added {
            Ok(Ok(added)) => added,
            Ok(Err(limit)) => return vec![Ok(in_all(Err(NotCounted::Limited(limit)))); ids.len()],
            // A named counter is registered when its ids are drained into Redis.
            Err(error) => {
                let of_sets = |_| Added::of_sets(sets.iter().map(|_| Err(error.clone())).collect());
                counter_windows.iter().map(of_sets).collect()
            }
        };
        self.in_order(&counter_windows, ids, sets, added, changes).await
    }

    /// Adds ids to these windows of a counter in Redis.
    ///
    /// The first is the main one. Returns their answers in each window, or the limit that their
    /// counter exceeds.
    ///
    /// Each step has its own time limit. After `until_ms`, by the monotonic clock, the ids are not
    /// added any more: the caller spools them.
    async fn add_ids(
        &self,
        counter_windows: &[CounterWindow],
        sets: &BTreeMap<Partition, Vec<Id>>,
        until_ms: u64,
    ) -> Result<Result<Vec<Added>, Limit>, RedisError> {
        if let Some(main) = counter_windows.first()
            && main.must_be_registered()
        {
            if let Some(limit) = self.register_counter(main).await? {
                return Ok(Err(limit));
            }
            if self.host.monotonic_ms() > until_ms {
                return Err(self.no_answer());
            }
        }
        let adding = self.add_within_limit(counter_windows, sets, until_ms);
        if !counter_windows.iter().any(CounterWindow::must_be_indexed) {
            return Ok(Ok(adding.await.into_iter().map(Added::of_sets).collect()));
        }
        // In parallel, because the index may be on another node. The answer waits for all.
        let indexing = counter_windows.iter().map(async |counter_window| {
            if counter_window.must_be_indexed() {
                self.index(counter_window).await
            } else {
                Ok(())
            }
        });
        let (indexed, of_windows) = future::join(future::join_all(indexing), adding).await;
        let mut added = Vec::new();
        for ((counter_window, indexed), of_sets) in counter_windows.iter().zip(indexed).zip(of_windows) {
            let mut of_window = Added::of_sets(of_sets);
            // Ids that are not added need no index entry yet: draining adds it.
            if let Err(redis) = indexed
                && has_added(&of_window)
            {
                of_window.indexed = self.spool_index(counter_window, redis).await;
            }
            added.push(of_window);
        }
        Ok(Ok(added))
    }

    /// Adds ids to these windows in Redis, unless they exceed the limit of the first.
    async fn add_within_limit(
        &self,
        counter_windows: &[CounterWindow],
        sets: &BTreeMap<Partition, Vec<Id>>,
        until_ms: u64,
    ) -> Vec<OfSets> {
        if counter_windows.len() == 1 || self.config.window_limit.is_none() {
            return self.redis.add_ids(counter_windows, sets).await;
        }
        let (main, longer) = counter_windows.split_at(1);
        let mut of_windows = self.redis.add_ids(main, sets).await;
        let of_main = of_windows.concat();
        let within = sets.iter().zip(&of_main).map(|((partition, ids), answers)| {
            let is_within = |at: usize| !matches!(answers, Ok(answers) if answers.get(at).is_some_and(Result::is_err));
            let ids = ids.iter().enumerate().filter(|(at, _)| is_within(*at));
            (*partition, ids.map(|(_, id)| *id).collect())
        });
        let within: BTreeMap<Partition, Vec<Id>> = within.collect();
        let of_longer = if self.host.monotonic_ms() > until_ms {
            let of_sets = || within.keys().map(|_| Err(self.no_answer())).collect();
            longer.iter().map(|_| of_sets()).collect()
        } else {
            self.redis.add_ids(longer, &within).await
        };
        // An id that exceeds the limit has the same answer in all windows.
        let with_beyond = |(answers, main): (OfSet, &OfSet)| {
            let Ok(main) = main else { return answers };
            let mut answers = answers?.into_iter();
            let next = |main: &Answer| main.and_then(|_| answers.next().unwrap_or(Err(NotCounted::Unavailable)));
            Ok(main.iter().map(next).collect())
        };
        let of_longer = of_longer.into_iter();
        of_windows.extend(of_longer.map(|of_sets| of_sets.into_iter().zip(&of_main).map(with_beyond).collect()));
        of_windows
    }

    /// Adds ids again if a server may have been replaced while they were added.
    ///
    /// Redis may have lost its data before it received the ids. Then the expiry of the set, the
    /// index entry of its window and the registration of its counter are lost too, and a request
    /// for which these are known does not write them again.
    async fn add_again(
        &self,
        counter_windows: &[CounterWindow],
        sets: &BTreeMap<Partition, Vec<Id>>,
        first: Vec<Added>,
        until_ms: u64,
    ) -> Result<Result<Vec<Added>, Limit>, RedisError> {
        // Another id may have forgotten all before this one was answered. The answer then noted
        // again that its set expires.
        self.counters.forget();
        let again = self.add_ids(counter_windows, sets, until_ms).await?;
        let of_window = |(first, again): (Added, Added)| {
            let of_sets = first.of_sets.into_iter().zip(again.of_sets);
            let of_sets = of_sets.map(|(first, again)| again.map(|again| merged(first, again)));
            Added {
                of_sets: of_sets.collect(),
                ..again
            }
        };
        Ok(again.map(|again| first.into_iter().zip(again).map(of_window).collect()))
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

    /// Returns the answers of each id, from those of each set of each window.
    ///
    /// Ids that are not in Redis are spooled.
    async fn in_order(
        self: &Rc<Self>,
        counter_windows: &[CounterWindow],
        ids: &[Id],
        sets: BTreeMap<Partition, Vec<Id>>,
        added: Vec<Added>,
        changes: u64,
    ) -> Vec<Recorded<Answers>> {
        let mut indexed = Vec::new();
        let mut of_windows = Vec::new();
        for added in added {
            indexed.push(added.indexed);
            of_windows.push(added.of_sets.into_iter());
        }
        let mut recorded = BTreeMap::new();
        for (partition, ids) in sets {
            let of_set = of_windows.iter_mut().zip(&indexed);
            let of_set: Vec<_> = of_set
                .map(|(added, indexed)| match (added.next(), indexed) {
                    (Some(Ok(_)), Err(error)) => Err(error.clone()),
                    (added, _) => Ok(added.unwrap_or_else(|| Err(self.no_answer()))),
                })
                .collect();
            let answers = self.recorded(counter_windows, partition, &ids, of_set, changes).await;
            recorded.insert(partition, answers);
        }
        let none = in_all(Err(NotCounted::Unavailable));
        in_order(ids, self.config.partitions, recorded, &none)
    }

    fn node_of(&self, counter_window: &CounterWindow, partition: Partition) -> Rc<Node<H>> {
        self.redis.node_of(|| counter_window.ids(partition))
    }

    /// Remembers ids of one partition that Redis recorded, and spools the others.
    ///
    /// `added` has the answers in each window. `changes` is the number of changes of servers before
    /// the ids were added.
    async fn recorded(
        self: &Rc<Self>,
        counter_windows: &[CounterWindow],
        partition: Partition,
        ids: &[Id],
        added: Vec<Recorded<OfSet>>,
        changes: u64,
    ) -> Recorded<Vec<Answers>> {
        let mut of_ids = vec![in_all(Err(NotCounted::Unavailable)); ids.len()];
        let mut is_seen = self.redis.changes() == changes;
        for (at, (counter_window, added)) in counter_windows.iter().zip(added).enumerate() {
            let answers = match added? {
                Ok(answers) => {
                    self.note_answer(&self.node_of(counter_window, partition));
                    answers
                }
                Err(redis) => {
                    is_seen = false;
                    self.spool_ids(counter_window, partition, ids, redis).await?;
                    vec![Ok(Outcome::Spooled); ids.len()]
                }
            };
            for (of_id, answer) in of_ids.iter_mut().zip(answers) {
                of_id[at] = answer;
            }
        }
        // After a change, the server that recorded the ids may have lost its data.
        if let Some(main) = counter_windows.first().filter(|_| is_seen) {
            let recorded = ids.iter().zip(&of_ids).filter(|(_, answers)| answers[0].is_ok());
            self.counters.add_seen(main, recorded.map(|(id, _)| id));
        }
        Ok(of_ids)
    }

    /// Notes that a node has answered.
    fn note_answer(self: &Rc<Self>, node: &Rc<Node<H>>) {
        if node.marked_down_until.get() != 0 {
            let (instance, node) = (self.clone(), node.clone());
            self.host.spawn(async move { instance.mark_up(&node).await });
        }
    }

    /// Spools ids of one set, because of this failure of Redis.
    async fn spool_ids(
        self: &Rc<Self>,
        counter_window: &CounterWindow,
        partition: Partition,
        ids: &[Id],
        redis: RedisError,
    ) -> Recorded<()> {
        self.counters.forget();
        let spooling = self.spool.add_ids(counter_window.ids(partition), ids);
        let spooled = self.in_time(spooling).await;
        self.spooled(redis, spooled)?;
        let node = self.node_of(counter_window, partition);
        let now = self.host.monotonic_ms();
        if node.circuit.is_open() && node.marked_down_until.get() < now {
            node.marked_down_until.set(now + OPEN_MS);
            let instance = self.clone();
            self.host.spawn(async move { instance.mark_down(&node).await });
        }
        Ok(())
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

/// The outcome of ids of a window in Redis.
struct Added {
    of_sets: OfSets,
    /// Whether the index has their window, or the spool has the entry.
    indexed: Recorded<()>,
}

/// Returns whether ids were added.
fn has_added(added: &Added) -> bool {
    let answers = added.of_sets.iter().flatten().flatten();
    answers.into_iter().any(Result::is_ok)
}

/// Returns the answers of ids that were added twice.
///
/// An id that was new the first time is a duplicate the second time.
fn merged(first: OfSet, again: Vec<Answer>) -> Vec<Answer> {
    let Ok(first) = first else {
        return again;
    };
    let both = first.into_iter().zip(again);
    both.map(|(first, again)| again.and_then(|again| first.or(Ok(again))))
        .collect()
}

impl Added {
    /// Returns the outcome of ids whose index entry did not fail.
    const fn of_sets(of_sets: OfSets) -> Self {
        Self {
            of_sets,
            indexed: Ok(()),
        }
    }
}

/// Records the ids that wait for a node, until none wait.
async fn record_waiting<H: Host>(
    instance: Rc<Instance<H>>,
    taking: Taking<H, CounterWindow, Answers>,
    mut waiters: Vec<Waiter<H, CounterWindow, Answers>>,
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
