//! Pauses and resumes processes.

use std::cell::{Cell, RefCell};
use std::task::{Context, Poll, Waker};

/// The gate of a process: the process is paused while the gate is closed.
#[derive(Default)]
pub struct Gate {
    is_closed: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl Gate {
    /// Pauses the process, or resumes it.
    pub fn close(&self, is_closed: bool) {
        self.is_closed.set(is_closed);
        if !is_closed {
            self.waiting.take().into_iter().for_each(Waker::wake);
        }
    }

    /// Returns whether the process is paused.
    pub fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    /// Waits until the process is not paused.
    pub async fn pass(&self) {
        std::future::poll_fn(|context| self.poll(context)).await;
    }

    /// Returns whether the process runs now; if not, wakes the task once it does.
    pub fn poll(&self, context: &Context<'_>) -> Poll<()> {
        if self.is_closed.get() {
            self.waiting.borrow_mut().push(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}
