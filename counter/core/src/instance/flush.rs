//! Statistics: counted with each answer, and flushed to Redis together, after the responses.

use std::collections::BTreeMap;
use std::rc::Rc;

use verve_protocol::Window;

use super::drain::{drain, look_into_spool};
use super::{Instance, JOBS_FULL};
use crate::answer::{Answer, Limit, NotCounted, statistic};
use crate::circuit::OPEN_MS;
use crate::config::Policy;
use crate::counted::{Counted, Place};
use crate::ports::{Host, unique_name};
use crate::spooled::Batch;
use crate::stats::{Counts, FLUSH_AFTER, flush};

/// From how many flushes on that were tried in vain no more are made.
const MOST_KEPT: usize = 8;

impl<H: Host> Instance<H> {
    /// Counts a request in the statistics by what came of it.
    pub(super) fn note(self: &Rc<Self>, place: &Place, answer: Answer) {
        // A counter that there may not be has no statistics.
        if answer != Err(NotCounted::Limited(Limit::Counters)) {
            self.count(place, statistic(answer));
        }
    }

    /// Counts a request in the statistics, under one of the fields of [`verve_protocol::keys::stats`].
    pub fn count(self: &Rc<Self>, place: &Place, field: &'static str) {
        if place.counted.stats.count(place.window, field) {
            self.host.spawn(flush_later(self.clone(), Due(place.counted.clone())));
        }
    }

    /// The flush of a window's counts.
    fn flush_of(&self, counted: &Counted, window: Window, counts: &Counts) -> Batch {
        let partitions = self.config.partitions.count();
        let (name, now_ms) = (unique_name(&self.host), self.host.now_ms());
        flush(&counted.keys, window, counts, name, now_ms, partitions)
    }

    /// Sends a flush to Redis, or else puts it into the spool. If neither works it is kept as it is, under its name: Redis may have run it though its answer
    /// was lost.
    async fn flush(&self, counted: &Counted, batch: Batch, is_again: bool) {
        let keys = &counted.keys;
        let redis = match self.redis.run_once(keys, &batch).await {
            // The spool may have one that was tried before, though that failed.
            Ok(_) if is_again => return,
            Ok(_) => return self.redis.forget(keys, &batch).await,
            // Statistics alone, which no other instance will have.
            Err(_) if H::POLICY == Policy::Once => return,
            Err(redis) => redis,
        };
        let spooled = self
            .in_time(self.background.add_batch(&batch, batch.commands.len()))
            .await;
        if let Err(error) = self.spooled(redis, spooled) {
            self.log.error(&format!("statistics not flushed: {error}"));
            counted.stats.keep(batch);
        }
    }

    /// Flushes the counts: first what could not be flushed before. While there is too much of that, the others are counted on.
    async fn flush_all(&self, due: Due) {
        let counted = due.0.clone();
        drop(due);
        for _ in 0..counted.stats.kept_len() {
            if let Some(batch) = counted.stats.kept() {
                self.flush(&counted, batch, true).await;
            }
        }
        if counted.stats.kept_len() >= MOST_KEPT {
            return;
        }
        let mut unflushed = Unflushed(counted.clone(), counted.stats.take());
        while let Some((window, counts)) = unflushed.1.pop_first() {
            let batch = self.flush_of(&counted, window, &counts);
            self.flush(&counted, batch, false).await;
        }
    }

    /// Finds out whether there is room for further callback jobs, and tells other instances if not.
    async fn look_for_room(&self) {
        match self.redis.has_room(&self.config.keys).await {
            Ok(true) => drop(self.jobs.close()),
            Ok(false) => {
                self.jobs.open(self.host.monotonic_ms() + OPEN_MS);
                // If others are not told, they find out themselves.
                let _ = self.background.tell(JOBS_FULL, self.host.now_ms() + OPEN_MS).await;
            }
            // Another matter, found out by requests.
            Err(_) => {}
        }
    }
}

/// A flush that somebody has been told to do. If that one is given up before, the next answer has somebody else do it.
struct Due(Rc<Counted>);

/// Counts that are to be flushed. Of what is not, once this is dropped, nothing is lost; what is under way then may be.
struct Unflushed(Rc<Counted>, BTreeMap<Window, Counts>);

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

/// Flushes the counts, after a while in which those of more responses have come together, and drains the spool.
async fn flush_later<H: Host>(instance: Rc<Instance<H>>, due: Due) {
    instance.host.sleep(FLUSH_AFTER).await;
    instance.flush_all(due).await;
    if instance.jobs_added.get() {
        instance.look_for_room().await;
        instance.jobs_added.set(false);
    }
    if instance.draining.is_to_look(&instance.host) {
        look_into_spool(instance.clone()).await;
    }
    if instance.draining.is_due.get() {
        drain(&instance).await;
    }
}
