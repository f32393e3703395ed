//! Ids that wait at the same time, to be recorded together.
//!
//! Each request is a task of its own to the host, and must not wake another one by Rust's own means. So whoever waits reads
//! from a stream that carries nothing, and is woken by its writing end being dropped: streams are the host's.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use spin_sdk::wasip3::wit_bindgen::StreamWriter;
use spin_sdk::wasip3::wit_stream;
use verve_protocol::{Id, Window};

use crate::batches::leading;

/// What came of an id.
pub type Recorded<T> = Result<T, Rc<str>>;

/// The ids for one server.
pub struct Queue<T> {
    waiting: RefCell<Vec<Waiter<T>>>,
    /// Whether somebody takes them.
    busy: Cell<bool>,
}

/// An id, and who waits for what comes of it.
pub struct Waiter<T> {
    /// Its window.
    pub window: Window,
    /// The id.
    pub id: Id,
    outcome: Rc<RefCell<Option<Recorded<T>>>>,
    _wake: StreamWriter<u8>,
}

impl<T> Waiter<T> {
    /// Wakes who waits.
    pub fn done(self, outcome: Recorded<T>) {
        *self.outcome.borrow_mut() = Some(outcome);
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            waiting: RefCell::default(),
            busy: Cell::new(false),
        }
    }
}

impl<T> Queue<T> {
    /// Waits until somebody who takes ids has recorded this one. Without anybody it is for the caller to do so.
    pub async fn wait(&self, window: Window, id: Id) -> Option<Recorded<T>> {
        if !self.busy.replace(true) {
            return None;
        }
        let (wake, mut woken) = wit_stream::new();
        let outcome = Rc::default();
        self.waiting.borrow_mut().push(Waiter {
            window,
            id,
            outcome: Rc::clone(&outcome),
            _wake: wake,
        });
        woken.read(Vec::with_capacity(1)).await;
        Some(outcome.take().unwrap_or_else(|| Err("given up".into())))
    }

    /// Takes ids of one window, in their order. Without any, whoever took them stops doing so.
    pub fn take(&self) -> Vec<Waiter<T>> {
        let mut waiting = self.waiting.borrow_mut();
        let count = leading(waiting.iter().map(|waiter| waiter.window));
        if count == 0 {
            self.busy.set(false);
        }
        waiting.drain(..count).collect()
    }
}
