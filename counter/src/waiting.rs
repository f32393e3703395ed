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
use verve_protocol::Id;

use crate::batches::take_alike;

/// What came of an id.
pub type Recorded<T> = Result<T, Rc<str>>;

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
    outcome: Rc<RefCell<Option<Recorded<T>>>>,
    _wake: StreamWriter<u8>,
}

/// What is to be done about an id.
pub enum Turn<P, T> {
    /// Nothing: somebody else has recorded it.
    Recorded(Recorded<T>),
    /// To record it, and then those that wait.
    Take(Taking<P, T>),
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
        loop {
            if !self.busy.replace(true) {
                return Turn::Take(Taking(self.clone()));
            }
            let (wake, mut woken) = wit_stream::new();
            let outcome = Rc::default();
            self.waiting.borrow_mut().push(Waiter {
                place: place.clone(),
                id,
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
