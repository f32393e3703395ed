//! Ids that wait at the same time, to be recorded together.
//!
//! Each request is a task of its own to the host, and must not wake another one by Rust's own means. So whoever waits reads
//! from a stream that carries nothing, and is woken by its writing end being dropped: streams are the host's.

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

/// An id, and who waits for what comes of it.
pub struct Waiter<P, T> {
    /// Where it is counted: a counter's window.
    pub place: P,
    /// The id.
    pub id: Id,
    outcome: Rc<RefCell<Option<Recorded<T>>>>,
    _wake: StreamWriter<u8>,
}

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

impl<P: Clone + PartialEq, T> Queue<P, T> {
    /// Waits until somebody who takes ids has recorded this one. Without anybody it is for the caller to do so.
    pub async fn wait(&self, place: P, id: Id) -> Option<Recorded<T>> {
        if !self.busy.replace(true) {
            return None;
        }
        let (wake, mut woken) = wit_stream::new();
        let outcome = Rc::default();
        self.waiting.borrow_mut().push(Waiter {
            place,
            id,
            outcome: Rc::clone(&outcome),
            _wake: wake,
        });
        woken.read(Vec::with_capacity(1)).await;
        Some(outcome.take().unwrap_or_else(|| Err("given up".into())))
    }

    /// Takes ids of one place, in their order. Without any, whoever took them stops doing so.
    pub fn take(&self) -> Vec<Waiter<P, T>> {
        let taken = take_alike(&mut self.waiting.borrow_mut(), |waiter| waiter.place.clone());
        if taken.is_empty() {
            self.busy.set(false);
        }
        taken
    }
}
