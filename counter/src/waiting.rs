//! Ids that wait at the same time, to be recorded together.
//!
//! Each request is a task of its own to the host, and must not wake another one by Rust's own means. So whoever waits reads
//! from a stream that carries nothing, and is woken by its writing end being dropped: streams are the host's.
//!
//! Whoever records, or waits, may be given up at any time. What was taken is then given back: all who wait are woken, and one of them records.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use spin_sdk::wasip3::wit_bindgen::StreamWriter;
use spin_sdk::wasip3::wit_stream;
use thiserror::Error;

use verve_counter_core::alike::take_alike;
use verve_counter_core::redis_error::RedisError;
use verve_counter_core::spooled::SpoolError;
use verve_protocol::Id;

use crate::clock::monotonic_ms;

/// Why something is neither in Redis nor in the spool.
#[derive(Debug, Error)]
#[error("{redis}; {spool}")]
pub struct NotRecorded {
    redis: RedisError,
    spool: SpoolError,
}

impl NotRecorded {
    /// For these reasons.
    pub const fn new(redis: RedisError, spool: SpoolError) -> Self {
        Self { redis, spool }
    }
}

/// What came of an id. Several may wait for the same.
pub type Recorded<T> = Result<T, Rc<NotRecorded>>;

/// The ids for one server.
pub struct Queue<P, T> {
    waiting: RefCell<Vec<Waiter<P, T>>>,
    /// Whether somebody takes them.
    busy: Cell<bool>,
}

/// An id, and who waits for what comes of it. Dropped without an outcome, it has who waits look again.
pub struct Waiter<P, T> {
    /// Where it is counted: a counter's window.
    pub place: P,
    /// The id.
    pub id: Id,
    /// Since when, by the monotonic clock in milliseconds.
    pub since_ms: u64,
    outcome: Rc<RefCell<Option<Recorded<T>>>>,
    _wake: StreamWriter<u8>,
}

/// What is to be done about an id.
pub enum Turn<P, T> {
    /// Nothing: somebody else has recorded it.
    Recorded(Recorded<T>),
    /// To record it, and then those that wait. If it has waited itself, since when.
    Take(Taking<P, T>, Option<u64>),
}

/// The right to take what waits. Dropped while there is something, it wakes all who wait, and one of them has it then.
pub struct Taking<P, T>(Rc<Queue<P, T>>);

impl<P, T> Waiter<P, T> {
    /// Wakes who waits.
    pub fn done(self, outcome: Recorded<T>) {
        *self.outcome.borrow_mut() = Some(outcome);
    }
}

impl<P, T> Default for Queue<P, T> {
    fn default() -> Self {
        Self {
            waiting: RefCell::default(),
            busy: Cell::new(false),
        }
    }
}

impl<P: Clone, T> Queue<P, T> {
    /// Waits until somebody who takes ids has recorded this one. Without anybody it is for the caller to do so.
    pub async fn wait(self: &Rc<Self>, place: &P, id: Id) -> Turn<P, T> {
        let mut since_ms = None;
        loop {
            if !self.busy.replace(true) {
                return Turn::Take(Taking(self.clone()), since_ms);
            }
            let (wake, mut woken) = wit_stream::new();
            let outcome = Rc::default();
            self.waiting.borrow_mut().push(Waiter {
                place: place.clone(),
                id,
                since_ms: *since_ms.get_or_insert_with(monotonic_ms),
                outcome: Rc::clone(&outcome),
                _wake: wake,
            });
            woken.read(Vec::with_capacity(1)).await;
            if let Some(outcome) = outcome.take() {
                return Turn::Recorded(outcome);
            }
        }
    }
}

impl<P: Clone + PartialEq, T> Taking<P, T> {
    /// Takes ids of one place, in their order.
    pub fn take(&self) -> Vec<Waiter<P, T>> {
        take_alike(&mut self.0.waiting.borrow_mut(), |waiter| waiter.place.clone())
    }
}

impl<P, T> Drop for Taking<P, T> {
    fn drop(&mut self) {
        self.0.busy.set(false);
        drop(self.0.waiting.take());
    }
}
