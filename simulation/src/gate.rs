//! Processes that are paused.

use std::cell::{Cell, RefCell};
use std::task::{Context, Poll, Waker};

/// Whether a process goes on, or is paused.
#[derive(Default)]
pub struct Gate {
    is_closed: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl Gate {
    /// Pauses the process, or has it go on.
    pub fn close(&self, is_closed: bool) {
        self.is_closed.set(is_closed);
        if !is_closed {
            self.waiting.take().into_iter().for_each(Waker::wake);
        }
    }

    /// Whether the process is paused.
    pub fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    /// Waits until the process goes on.
    pub async fn pass(&self) {
        std::future::poll_fn(|context| self.poll(context)).await;
    }

    /// Whether it goes on now; if not, the task is woken once it does.
    pub fn poll(&self, context: &Context<'_>) -> Poll<()> {
        if self.is_closed.get() {
            self.waiting.borrow_mut().push(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}
