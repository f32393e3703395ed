//! Ids that wait at the same time, to be recorded together.
//!
//! Whoever records, or waits, may be given up at any time. What was taken is then given back: all who wait are woken, and one of them records.

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
    /// Neither takes it.
    #[error("{redis}; {spool}")]
    Both { redis: RedisError, spool: SpoolError },
}

/// What came of an id. Several may wait for the same.
pub type Recorded<T> = Result<T, Rc<NotRecorded>>;

/// The ids for one server.
pub struct Queue<H: Host, P, T> {
    host: H,
    waiting: RefCell<Vec<Waiter<H, P, T>>>,
    /// Whether somebody takes them.
    busy: Cell<bool>,
}

/// An id, and who waits for what comes of it. Dropped without an outcome, it has who waits look again.
pub struct Waiter<H: Host, P, T> {
    /// Where it is counted: a counter's window.
    pub place: P,
    /// The id.
    pub id: Id,
    /// Since when, by the monotonic clock in milliseconds.
    pub since_ms: u64,
    outcome: Rc<RefCell<Option<Recorded<T>>>>,
    _wake: H::Wake,
}

/// What is to be done about an id.
pub enum Turn<H: Host, P, T> {
    /// Nothing: somebody else has recorded it.
    Recorded(Recorded<T>),
    /// To record it, and then those that wait. If it has waited itself, since when.
    Take(Taking<H, P, T>, Option<u64>),
}

/// The right to take what waits. Dropped while there is something, it wakes all who wait, and one of them has it then.
pub struct Taking<H: Host, P, T>(Rc<Queue<H, P, T>>);

impl<H: Host, P, T> Waiter<H, P, T> {
    /// Wakes who waits.
    pub fn done(self, outcome: Recorded<T>) {
        *self.outcome.borrow_mut() = Some(outcome);
    }
}

impl<H: Host, P: Clone, T> Queue<H, P, T> {
    /// Nobody waits in it.
    pub fn new(host: H) -> Rc<Self> {
        Rc::new(Self {
            host,
            waiting: RefCell::default(),
            busy: Cell::new(false),
        })
    }

    /// Waits until somebody who takes ids has recorded this one. Without anybody it is for the caller to do so.
    pub async fn wait(self: &Rc<Self>, place: &P, id: Id) -> Turn<H, P, T> {
        let mut since_ms = None;
        loop {
            if !self.busy.replace(true) {
                return Turn::Take(Taking(self.clone()), since_ms);
            }
            let (wake, woken) = self.host.signal();
            let outcome = Rc::default();
            self.waiting.borrow_mut().push(Waiter {
                place: place.clone(),
                id,
                since_ms: *since_ms.get_or_insert_with(|| self.host.monotonic_ms()),
                outcome: Rc::clone(&outcome),
                _wake: wake,
            });
            woken.await;
            if let Some(outcome) = outcome.take() {
                return Turn::Recorded(outcome);
            }
        }
    }
}

impl<H: Host, P: Clone + PartialEq, T> Taking<H, P, T> {
    /// Takes ids of one place, in their order.
    pub fn take(&self) -> Vec<Waiter<H, P, T>> {
        take_alike(&mut self.0.waiting.borrow_mut(), |waiter| waiter.place.clone())
    }
}

impl<H: Host, P, T> Drop for Taking<H, P, T> {
    fn drop(&mut self) {
        self.0.busy.set(false);
        drop(self.0.waiting.take());
    }
}
