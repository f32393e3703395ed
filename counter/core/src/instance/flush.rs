//! Statistics: counted with each answer, and flushed to Redis.
//!
//! Counts of several answers are flushed together, after the responses.

use std::collections::BTreeMap;
use std::rc::Rc;

use verve_protocol::{Window, WindowLengths};

use super::drain::{drain, look_into_spool};
use super::{Instance, JOBS_FULL};
use crate::answer::{Answers, Limit, NotCounted, statistic};
use crate::circuit::OPEN_MS;
use crate::config::Policy;
use crate::counter_state::{CounterState, CounterWindow};
use crate::ports::{Host, unique_name};
use crate::spooled::Batch;
use crate::stats::{Counts, FLUSH_AFTER, flush};

/// The number of failed flushes from which no new flush is made.
const MOST_KEPT: usize = 8;

impl<H: Host> Instance<H> {
    /// Counts a request in the statistics, by its answers.
    pub(super) fn note(self: &Rc<Self>, counter_window: &CounterWindow, answers: Answers) {
        // A counter that exceeds the limit of counters has no statistics.
        if answers[0] != Err(NotCounted::Limited(Limit::Counters)) {
            self.count_in_all(counter_window, answers.map(statistic));
        }
    }

    /// Counts a request in its main window and the longer ones.
    ///
    /// In each, it counts under one of the fields of [`verve_protocol::keys::stats`].
    pub fn count_in_all(self: &Rc<Self>, counter_window: &CounterWindow, fields: [&'static str; WindowLengths::MOST]) {
        for (CounterWindow { state, window }, field) in counter_window.all().zip(fields) {
            if state.stats.count(window, field) {
                self.host.spawn(flush_later(self.clone(), Due(state)));
            }
        }
    }

    /// Returns the flush of a window's counts.
    fn flush_of(&self, state: &CounterState, window: Window, counts: &Counts) -> Batch {
        let partitions = self.config.partitions.count();
        let (name, now_ms) = (unique_name(&self.host), self.host.now_ms());
        flush(&state.keys, window, counts, name, now_ms, partitions)
    }

    /// Sends a flush to Redis, or else adds it to the spool.
    ///
    /// If both fail, it is kept unchanged, with its idempotency key: Redis may have run it although
    /// its answer was lost.
    async fn flush(&self, state: &CounterState, batch: Batch, is_again: bool) {
        let keys = &state.keys;
        let redis = match self.redis.run_once(keys, &batch).await {
            // The spool may have this flush from an attempt that seemed to fail, so its idempotency
            // key must stay.
            Ok(_) if is_again => return,
            Ok(_) => return self.redis.forget(keys, &batch).await,
            // Only statistics are lost: this instance ends, and it has no spool to keep them.
            Err(_) if H::POLICY == Policy::PerRequest => return,
            Err(redis) => redis,
        };
        let spooled = self
            .in_time(self.background.add_batch(&batch, batch.commands.len()))
            .await;
        if let Err(error) = self.spooled(redis, spooled) {
            self.log.error(&format!("statistics not flushed: {error}"));
            state.stats.keep(batch);
        }
    }

    /// Flushes the counts, after the flushes that failed before.
    ///
    /// While too many flushes have failed, new counts only accumulate in memory.
    async fn flush_all(&self, due: Due) {
        let state = due.0.clone();
        drop(due);
        for _ in 0..state.stats.kept_len() {
            if let Some(batch) = state.stats.kept() {
                self.flush(&state, batch, true).await;
            }
        }
        if state.stats.kept_len() >= MOST_KEPT {
            return;
        }
        let mut unflushed = Unflushed(state.clone(), state.stats.take());
        while let Some((window, counts)) = unflushed.1.pop_first() {
            let batch = self.flush_of(&state, window, &counts);
            self.flush(&state, batch, false).await;
        }
    }

    /// Checks whether there is room for more callback jobs.
    ///
    /// Notifies other instances if there is none.
    async fn look_for_room(&self) {
        match self.redis.has_room(&self.config.keys).await {
            Ok(true) => drop(self.jobs.close()),
            Ok(false) => {
                self.jobs.open(self.host.monotonic_ms() + OPEN_MS);
                // If this fails, the other instances find out themselves.
                let _ = self.background.mark(JOBS_FULL, self.host.now_ms() + OPEN_MS).await;
            }
            // A different failure, which requests notice.
            Err(_) => {}
        }
    }
}

/// A scheduled flush.
///
/// If its task is given up before it takes the counts, the next answer schedules another flush.
struct Due(Rc<CounterState>);

/// Counts that are to be flushed.
///
/// When this is dropped, the remaining counts are put back. Only counts whose flush is under way
/// may be lost.
struct Unflushed(Rc<CounterState>, BTreeMap<Window, Counts>);

impl Drop for Unflushed {
    fn drop(&mut self) {
        for (window, counts) in std::mem::take(&mut self.1) {
            self.0.stats.put_back(window, counts);
        }
    }
}

impl Drop for Due {
    fn drop(&mut self) {
        self.0.stats.is_due_no_more();
    }
}

/// Flushes the counts, and drains the spool.
///
/// It first waits, so that the counts of more responses are flushed together.
async fn flush_later<H: Host>(instance: Rc<Instance<H>>, due: Due) {
    instance.host.sleep(FLUSH_AFTER).await;
    instance.flush_all(due).await;
    if instance.jobs_added.replace(false) {
        instance.look_for_room().await;
    }
    if instance.draining.is_to_look(&instance.host) {
        look_into_spool(instance.clone()).await;
    }
    if instance.draining.is_due.get() {
        drain(&instance).await;
    }
}
