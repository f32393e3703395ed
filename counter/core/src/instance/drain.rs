//! Draining: one instance at a time drains the spool into Redis.
//!
//! It need not be the instance that spooled the content.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use futures::future;
use verve_protocol::keys::ids_parts;
use verve_protocol::{Keys, WindowLength, WindowLengths};

use super::{Instance, JOBS_FULL};
use crate::circuit::OPEN_MS;
use crate::config::Policy;
use crate::ports::Host;
use crate::redis_error::RedisError;
use crate::spooled::{Batch, MOST_SPOOLED, SpoolError};

/// How soon the draining instance tries again while Redis is unreachable.
const DRAIN_AGAIN: Duration = Duration::from_secs(1);
/// How long a claim on the draining lasts, unless it is renewed.
///
/// It is longer than [`DRAIN_AGAIN`].
const DRAIN_CLAIM: Duration = Duration::from_secs(3);

/// How often an instance that has requests checks the spool.
///
/// The instance that spooled something, or drained it, may no longer exist.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How many sets are drained in parallel.
///
/// Each takes about ten round trips to Redis, one after the other, and Redis may be far away. There
/// may be very many sets: some for each window of each counter.
const SETS_AT_ONCE: usize = 16;

/// The name of a state in the spool: an instance drains it.
const DRAINING: &str = "draining";

/// Reads the messages of other instances in the spool, and drains its content.
pub async fn look_into_spool<H: Host>(instance: Rc<Instance<H>>) {
    let draining = &instance.draining;
    if !draining.is_looking.replace(true) {
        let _looking = Busy(&draining.is_looking);
        let is_first = draining.look_ms.get() == 0;
        let looked = look(&instance, is_first).await;
        let again_ms = instance.host.monotonic_ms() + LOOK_EVERY.as_millis() as u64;
        // A spool of another owner has nothing of ours. An attempt to add to it notices when it
        // becomes ours.
        let never = matches!(looked, Err(SpoolError::Foreign { .. } | SpoolError::Format { .. }));
        draining.look_ms.set(if never { u64::MAX } else { again_ms });
        if let Err(error) = looked {
            (instance.log).error(&format!("cannot look into the spool: {error}"));
        }
    }
}

/// The state of this instance about the spool.
#[derive(Default)]
pub struct Draining {
    /// When this instance checks the spool next; 0 if it has never checked.
    ///
    /// By the monotonic clock, in milliseconds.
    look_ms: Cell<u64>,
    /// Whether a task of this instance checks the spool now.
    is_looking: Cell<bool>,
    /// Whether a task of this instance reports the progress of the draining now.
    is_recording: Cell<bool>,
    /// Whether something was spooled that no task of this instance drains yet.
    pub is_due: Cell<bool>,
}

impl Draining {
    /// Whether it is time to check the spool.
    pub fn is_to_look<H: Host>(&self, host: &H) -> bool {
        H::POLICY == Policy::LongLived && host.monotonic_ms() >= self.look_ms.get()
    }
}

/// Marks a task as busy until it is dropped, also if the task is given up.
struct Busy<'a>(&'a Cell<bool>);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// Checks the spool.
///
/// Only the first check of an instance (`is_first`) uses the messages of others: later the instance
/// has found out itself.
async fn look<H: Host>(instance: &Instance<H>, is_first: bool) -> Result<(), SpoolError> {
    let host = &instance.host;
    let contents = instance.background.contents().await?;
    for (name, until) in contents.state.into_iter().filter(|_| is_first) {
        let left = until.saturating_sub(host.now_ms());
        if name == JOBS_FULL && (1..=OPEN_MS).contains(&left) {
            instance.jobs.open(host.monotonic_ms() + left);
        }
        if let Some(node) = instance.redis.named(&name).await {
            // One instance probes the node, while the others continue to spool.
            node.marked_down_until.set(host.monotonic_ms() + left.min(OPEN_MS));
            let trial_ms = node.trial_ms();
            match instance.background.claim(&name, host.now_ms(), trial_ms).await {
                Ok(true) | Err(_) => {}
                Ok(false) => node.circuit.open(host.monotonic_ms() + left.clamp(OPEN_MS, trial_ms)),
            }
        }
    }
    if contents.any {
        drain(instance).await;
        // Another instance may drain, or may have died while it drained: try again once its claim
        // has expired.
        host.sleep(DRAIN_CLAIM).await;
        drain(instance).await;
    }
    Ok(())
}

/// Returns how long a claim on the draining lasts, in milliseconds.
const fn drain_claim_ms() -> u64 {
    DRAIN_CLAIM.as_millis() as u64
}

/// Drains the spool into Redis, unless another instance does.
pub async fn drain<H: Host>(instance: &Instance<H>) {
    if let Err(error) = instance.drain().await {
        instance.log.error(&format!("the spool is not drained: {error}"));
    }
}

impl<H: Host> Instance<H> {
    /// Drains the spool into Redis until it is empty, unless another instance does.
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
            self.record_state().await?;
            self.background.unmark(DRAINING).await?;
            // Another instance may have relied on this claim, and spooled something just before its
            // end.
            if !self.background.contents().await?.any {
                break;
            }
        }
        Ok(())
    }

    /// Drains what Redis accepts now. Returns whether that was all.
    ///
    /// What is not removed from the spool, because this instance died or failed, is sent again.
    /// This changes nothing.
    async fn drain_what_goes(&self) -> Result<bool, SpoolError> {
        loop {
            // In each round, so that newly spooled ids do not wait for jobs and statistics, of
            // which there may be very many.
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

    /// Runs a batch of commands, and returns whether it has run, now or before.
    async fn has_run(&self, batch: &Batch) -> bool {
        // The batch may belong to another counter.
        let keys = batch.counter().map(|name| self.config.keys.named(name));
        let keys = keys.as_ref().unwrap_or(&self.config.keys);
        matches!(self.redis.run_once(keys, batch).await, Ok(true))
    }

    /// Renews the claim on the draining, and reports the progress.
    async fn go_on(&self) -> Result<(), SpoolError> {
        self.background
            .mark(DRAINING, self.host.now_ms() + drain_claim_ms())
            .await?;
        // One set at a time reports, or an older state could arrive after a newer one.
        if self.draining.is_recording.replace(true) {
            return Ok(());
        }
        let _recording = Busy(&self.draining.is_recording);
        self.record_state().await
    }

    /// Reports to Redis how much is in the spool, and how much was drained.
    ///
    /// This is for metrics only. If it fails, the next step reports it.
    async fn record_state(&self) -> Result<(), SpoolError> {
        let Some((name, state)) = self.background.state(self.host.now_ms() / 1000).await? else {
            return Ok(());
        };
        let must_report = state.depth > 0 || state.drained > 0;
        let node = self.redis.node_of(|| self.config.keys.spools());
        if !must_report || node.circuit.is_open() {
            return Ok(());
        }
        if let Err(redis) = self.redis.record_spool_state(&self.config.keys, &name, state).await {
            self.log
                .error(&format!("the state of the spool is not recorded: {redis}"));
        } else if state.depth == 0 {
            self.background.rename(&name, state.drained).await?;
        }
        Ok(())
    }

    async fn drain_ids(&self) -> Result<bool, SpoolError> {
        let mut all = true;
        let sets = self.background.sets().await?;
        // The first set is drained alone: it may be the probe of a half-open circuit, which would
        // refuse the others.
        let (first, others) = sets.split_at(sets.len().min(1));
        for keys in first.chunks(1).chain(others.chunks(SETS_AT_ONCE)) {
            // In a cluster, some nodes may be unreachable and others not. All sets together send no
            // more in one step than one set would.
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
        let named = self.config.keys.named_ids(key);
        let named = named.map(|name| self.config.keys.named(name));
        let keys = named.as_ref().unwrap_or(&self.config.keys);
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
            // Again: in between, the leader may have checked the set, found nothing, and removed
            // its window from the index, or its counter from those in use.
            if let Err(redis) = self.index_set(keys, key).await {
                return stay(&redis);
            }
            self.mark_up(&self.redis.node_of(|| key)).await;
            self.background.remove_ids(&found).await?;
            self.go_on().await?;
        }
    }

    /// Adds the window of this set to the index, so that the reporter counts it.
    ///
    /// It first registers the counter of the set, if that has a name.
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
        // Accepted ids are counted, so this registration ignores the limit of counters.
        let lengths = WindowLengths::from(window.length());
        self.redis.register_counter(keys, &lengths, true).await?;
        let partitions = self.config.partitions.count().max(partition.number() + 1);
        self.redis.index(keys, window, partitions).await
    }
}
