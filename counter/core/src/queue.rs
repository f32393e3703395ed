//! Ids that wait at the same time, to be recorded together.
//!
//! A task that records or waits may be given up at any time. The ids that it took are then
//! released: all waiting requests wake, and one of them records.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use thiserror::Error;
use verve_protocol::Id;

use crate::alike::take_alike;
use crate::ports::Host;
use crate::redis_error::RedisError;
use crate::spooled::SpoolError;

/// Why something is neither in Redis nor in the spool.
#[derive(Debug, Error)]
pub enum NotRecorded {
    /// There is no spool.
    #[error("{0}")]
    Redis(RedisError),
    /// Neither accepts it.
    #[error("{redis}; {spool}")]
    Both { redis: RedisError, spool: SpoolError },
}

/// The outcome of an id. Several requests may wait for the same one.
pub type Recorded<T> = Result<T, Rc<NotRecorded>>;

/// The ids that wait for one server.
pub struct Queue<H: Host, P, T> {
    host: H,
    waiting: RefCell<Vec<Waiter<H, P, T>>>,
    /// Whether a [`Taking`] exists.
    busy: Cell<bool>,
}

/// An id, and the request that waits for its outcome.
///
/// If it is dropped without an outcome, the request tries again.
pub struct Waiter<H: Host, P, T> {
    /// The counter window in which it is counted.
    pub counter_window: P,
    /// The id.
    pub id: Id,
    /// Since when it waits, by the monotonic clock in milliseconds.
    pub since_ms: u64,
    outcome: Rc<RefCell<Option<Recorded<T>>>>,
    _wake: H::Wake,
}

/// What a request has to do about its id.
pub enum Permit<H: Host, P, T> {
    /// Nothing: another request has recorded it.
    Recorded(Recorded<T>),
    /// Record it, and then the ids that wait.
    ///
    /// If it has waited itself, the time is when it began to wait.
    Take(Taking<H, P, T>, Option<u64>),
}

/// The right to take the ids that wait.
///
/// If it is dropped while ids wait, all their requests wake, and one of them gets the right.
pub struct Taking<H: Host, P, T>(Rc<Queue<H, P, T>>);

impl<H: Host, P, T> Waiter<H, P, T> {
    /// Sets the outcome, and wakes the request.
    pub fn done(self, outcome: Recorded<T>) {
        *self.outcome.borrow_mut() = Some(outcome);
    }
}

impl<H: Host, P: Clone, T> Queue<H, P, T> {
    /// Returns an empty queue.
    pub fn new(host: H) -> Rc<Self> {
        Rc::new(Self {
            host,
            waiting: RefCell::default(),
            busy: Cell::new(false),
        })
    }

    /// Waits until another request has recorded this id.
    ///
    /// If no request records, the caller gets the right to do so.
    pub async fn wait(self: &Rc<Self>, counter_window: &P, id: Id) -> Permit<H, P, T> {
        let mut since_ms = None;
        loop {
            if !self.busy.replace(true) {
                return Permit::Take(Taking(self.clone()), since_ms);
            }
            let (wake, woken) = self.host.signal();
            let outcome = Rc::default();
            self.waiting.borrow_mut().push(Waiter {
                counter_window: counter_window.clone(),
                id,
                since_ms: *since_ms.get_or_insert_with(|| self.host.monotonic_ms()),
                outcome: Rc::clone(&outcome),
                _wake: wake,
            });
            woken.await;
            if let Some(outcome) = outcome.take() {
                return Permit::Recorded(outcome);
            }
        }
    }
}

impl<H: Host, P: Clone + PartialEq, T> Taking<H, P, T> {
    /// Takes ids of one counter window, in their order.
    pub fn take(&self) -> Vec<Waiter<H, P, T>> {
        take_alike(&mut self.0.waiting.borrow_mut(), |waiter| waiter.counter_window.clone())
    }
}

impl<H: Host, P, T> Drop for Taking<H, P, T> {
    fn drop(&mut self) {
        self.0.busy.set(false);
        drop(self.0.waiting.take());
    }
}
