//! Draining: what is in the spool is brought to Redis by one instance at a time, whichever has put it there.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use futures::future;
use verve_protocol::keys::ids_parts;
use verve_protocol::{Keys, WindowLength};

use super::{Instance, JOBS_FULL};
use crate::circuit::OPEN_MS;
use crate::config::Policy;
use crate::ports::Host;
use crate::redis_error::RedisError;
use crate::spooled::{Batch, MOST_SPOOLED, SpoolError};

/// How soon an instance that drains the spool tries again while Redis is away.
const DRAIN_AGAIN: Duration = Duration::from_secs(1);
/// For how long an instance has the draining to itself, unless it says so again: some longer than [`DRAIN_AGAIN`].
const DRAIN_CLAIM: Duration = Duration::from_secs(3);

/// How often an instance that has something to do looks into the spool: whoever has put something there, or drained it, may be gone.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How many sets are drained at once. Each takes some ten trips to Redis one after the other, which may be far away, and there may be very many sets:
/// some for each window of each counter.
const SETS_AT_ONCE: usize = 16;

/// In the spool's state: somebody drains it.
const DRAINING: &str = "draining";

/// Learns from the spool what other instances have found out, and drains it if somebody has left something there.
pub async fn look_into_spool<H: Host>(instance: Rc<Instance<H>>) {
    let draining = &instance.draining;
    if !draining.is_looking.replace(true) {
        let _looking = Busy(&draining.is_looking);
        let is_first = draining.look_ms.get() == 0;
        let looked = look(&instance, is_first).await;
        let again_ms = instance.host.monotonic_ms() + LOOK_EVERY.as_millis() as u64;
        // One that is not ours has nothing of ours, and whoever adds to it finds out when it is ours.
        let never = matches!(looked, Err(SpoolError::Foreign { .. } | SpoolError::Format { .. }));
        draining.look_ms.set(if never { u64::MAX } else { again_ms });
        if let Err(error) = looked {
            (instance.log).error(&format!("what may be in the spool is not drained: {error}"));
        }
    }
}

/// What this instance knows of the spool.
#[derive(Default)]
pub struct Draining {
    /// When somebody of this instance is to look into it, by the monotonic clock in milliseconds; 0 if nobody has.
    look_ms: Cell<u64>,
    /// Whether somebody of this instance looks.
    is_looking: Cell<bool>,
    /// Whether somebody of this instance tells how far the draining is.
    is_telling: Cell<bool>,
    /// Whether something was put there, and nobody of this instance drains it yet.
    pub is_due: Cell<bool>,
}

impl Draining {
    /// Whether it is time for somebody to look.
    pub fn is_to_look<H: Host>(&self, host: &H) -> bool {
        H::POLICY == Policy::Kept && host.monotonic_ms() >= self.look_ms.get()
    }
}

/// Somebody is busy with something. One who is given up is so no more.
struct Busy<'a>(&'a Cell<bool>);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// What others have found out is believed by one that `is_first` to look: later it has found out itself.
async fn look<H: Host>(instance: &Instance<H>, is_first: bool) -> Result<(), SpoolError> {
    let host = &instance.host;
    let contents = instance.background.contents().await?;
    for (name, until) in contents.state.into_iter().filter(|_| is_first) {
        let left = until.saturating_sub(host.now_ms());
        if name == JOBS_FULL && (1..=OPEN_MS).contains(&left) {
            instance.jobs.open(host.monotonic_ms() + left);
        }
        if let Some(node) = instance.redis.named(&name).await {
            // One instance tries whether the node is back, while the others go on spooling.
            node.told_away.set(host.monotonic_ms() + left.min(OPEN_MS));
            let trial_ms = node.trial_ms();
            match instance.background.claim(&name, host.now_ms(), trial_ms).await {
                Ok(true) | Err(_) => {}
                Ok(false) => node.circuit.open(host.monotonic_ms() + left.clamp(OPEN_MS, trial_ms)),
            }
        }
    }
    if contents.any {
        drain(instance).await;
        // Somebody else drains, or has died at it.
        host.sleep(DRAIN_CLAIM).await;
        drain(instance).await;
    }
    Ok(())
}

/// For how long an instance that drains now has this to itself, in milliseconds.
const fn drain_claim_ms() -> u64 {
    DRAIN_CLAIM.as_millis() as u64
}

/// Brings what is in the spool to Redis, unless another instance does.
pub async fn drain<H: Host>(instance: &Instance<H>) {
    if let Err(error) = instance.drain().await {
        instance.log.error(&format!("the spool is not drained: {error}"));
    }
}

impl<H: Host> Instance<H> {
    /// Brings what is in the spool to Redis, for as long as that takes, unless another instance does.
    async fn drain(&self) -> Result<(), SpoolError> {
        while self
            .background
            .claim(DRAINING, self.host.now_ms(), drain_claim_ms())
            .await?
        {
            while !self.drain_what_goes().await? {
                self.go_on().await?;
                self.host.sleep(DRAIN_AGAIN).await;
            }
            self.draining.is_due.set(false);
            self.tell_state().await?;
            self.background.untell(DRAINING).await?;
            // What somebody put there at the end of the claim, relying on it.
            if !self.background.contents().await?.any {
                break;
            }
        }
        Ok(())
    }

    /// Brings to Redis what can be now. Says whether that was all. Whatever was not removed from the spool, since this
    /// instance died or failed, is brought again: nothing changes by that.
    async fn drain_what_goes(&self) -> Result<bool, SpoolError> {
        loop {
            // Each time: what was put there meanwhile does not wait for jobs and statistics, of which there may be very many.
            let all = self.drain_ids().await?;
            let batches = self.background.batches().await?;
            if batches.is_empty() {
                return Ok(all);
            }
            let have_run = future::join_all(batches.iter().map(|batch| self.has_run(batch))).await;
            let run = batches.iter().zip(have_run).filter(|(_, has_run)| *has_run);
            let run: Vec<&str> = run.map(|(batch, _)| batch.name.as_str()).collect();
            self.background.remove_batches(&run).await?;
            if run.len() < batches.len() {
                return Ok(false);
            }
            self.go_on().await?;
        }
    }

    /// Runs a batch of commands, and says whether it has run, now or before.
    async fn has_run(&self, batch: &Batch) -> bool {
        // It may be another counter's.
        let keys = batch.counter().map(|name| self.config.keys.named(name));
        let keys = keys.as_ref().unwrap_or(&self.config.keys);
        matches!(self.redis.run_once(keys, batch).await, Ok(true))
    }

    /// Keeps the draining to this instance, and tells how far it is.
    async fn go_on(&self) -> Result<(), SpoolError> {
        self.background
            .tell(DRAINING, self.host.now_ms() + drain_claim_ms())
            .await?;
        // By one of the sets at a time, or an older state could be told after a newer one.
        if self.draining.is_telling.replace(true) {
            return Ok(());
        }
        let _telling = Busy(&self.draining.is_telling);
        self.tell_state().await
    }

    /// Tells Redis how much is in the spool, and how much of it was drained. That is for metrics alone: if Redis cannot be told,
    /// the next step does.
    async fn tell_state(&self) -> Result<(), SpoolError> {
        let Some((name, state)) = self.background.state(self.host.now_ms() / 1000).await? else {
            return Ok(());
        };
        let is_news = state.depth > 0 || state.drained > 0;
        let node = self.redis.node_of(|| self.config.keys.spools());
        if !is_news || node.circuit.is_open() {
            return Ok(());
        }
        if let Err(redis) = self.redis.tell_spool(&self.config.keys, &name, state).await {
            self.log.error(&format!("the state of the spool is not told: {redis}"));
        } else if state.depth == 0 {
            self.background.rename(&name, state.drained).await?;
        }
        Ok(())
    }

    async fn drain_ids(&self) -> Result<bool, SpoolError> {
        let mut all = true;
        let sets = self.background.sets().await?;
        // The first one by itself: it may be the trial whether Redis is back, during which others would be turned away.
        let (first, others) = sets.split_at(sets.len().min(1));
        for keys in first.chunks(1).chain(others.chunks(SETS_AT_ONCE)) {
            // Of a cluster some nodes may be away, and others not. All together send no more at once than one would.
            let most = MOST_SPOOLED / keys.len();
            for is_all in future::join_all(keys.iter().map(|key| self.drain_set(key, most))).await {
                all &= is_all?;
            }
        }
        Ok(all)
    }

    async fn drain_set(&self, key: &str, most: usize) -> Result<bool, SpoolError> {
        let stay = |redis: &RedisError| {
            self.log.error(&format!("spooled ids stay in the spool: {redis}"));
            Ok(false)
        };
        let name = self.config.keys.named_ids(key);
        if let Some(name) = &name {
            // What was accepted is counted, however many counters there are.
            let told = self.redis.tell_counter(&self.config.keys, name, true);
            if let Err(redis) = told.await {
                return stay(&redis);
            }
        }
        let keys = name.map(|name| self.config.keys.named(name));
        let keys = keys.as_ref().unwrap_or(&self.config.keys);
        loop {
            let found = self.background.ids(key, most).await?;
            if found.ids.is_empty() {
                return Ok(true);
            }
            if let Err(redis) = self.index_set(keys, key).await {
                return stay(&redis);
            }
            if let Err(redis) = self.redis.add_spooled(key, &found.ids).await {
                return stay(&redis);
            }
            // Once more: the leader may have looked in between, found nothing, and taken it from its list.
            if let Err(redis) = self.index_set(keys, key).await {
                return stay(&redis);
            }
            self.tell_well(&self.redis.node_of(|| key)).await;
            self.background.remove_ids(&found).await?;
            self.go_on().await?;
        }
    }

    /// Tells the reporter that the window of this set has ids, before it does.
    async fn index_set(&self, keys: &Keys, key: &str) -> Result<(), RedisError> {
        let Some((_, length, start, partition)) = ids_parts(key) else {
            return Ok(());
        };
        let length = u32::try_from(length)
            .ok()
            .and_then(|seconds| WindowLength::try_new(seconds).ok());
        let Some(window) = length.and_then(|length| length.window_starting(start)) else {
            return Ok(());
        };
        let partitions = self.config.partitions.count().max(partition.number() + 1);
        self.redis.index(keys, window, partitions).await
    }
}
