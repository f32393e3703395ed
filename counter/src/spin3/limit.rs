//! Ends work that takes too long, without a timer for each piece of work.
//!
//! To the host, a timer is a call that must be cancelled if it was not needed, which costs more
//! than the rest of a request. Therefore one task watches the clock for all. Each waiting task also
//! reads from a stream that carries nothing, and wakes when the writing end is dropped. This can be
//! removed when the host's timers are as cheap as that.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use futures::future::{self, Either};
use spin_sdk::time::sleep;
use spin_sdk::wasip3::wit_bindgen::StreamWriter;
use spin_sdk::wasip3::wit_stream;
use verve_counter_core::ports::Limit;
use wit_bindgen::spawn;

/// The number of steps of a time limit. Work ends at most one step too late.
const STEPS: u32 = 10;

/// The waiting tasks, all with the same time limit.
pub struct Limits(Rc<Deadlines>);

struct Deadlines {
    limit: Duration,
    waiting: RefCell<BTreeMap<u64, Waiting>>,
    /// The number of the next waiting task.
    next: Cell<u64>,
    /// Whether a task watches the clock.
    watched: Cell<bool>,
}

struct Waiting {
    /// The steps for which the task may still wait; 0 when its time is over.
    ///
    /// The task shares this value.
    left: Rc<Cell<u32>>,
    /// Dropped to wake the task.
    _wake: StreamWriter<u8>,
}

impl Limits {
    /// Creates a time limit of `limit` for each piece of work.
    pub fn new(limit: Duration) -> Self {
        Self(Rc::new(Deadlines {
            limit,
            waiting: RefCell::default(),
            next: Cell::new(0),
            watched: Cell::new(false),
        }))
    }
}

impl Limit for Limits {
    async fn within<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let Self(deadlines) = self;
        // One step more, because the current step may have begun long ago.
        let left = Rc::new(Cell::new(STEPS + 1));
        let mut work = pin!(work);
        loop {
            let (wake, mut woken) = wit_stream::new();
            let waiting = deadlines.wait(left.clone(), wake);
            if !deadlines.watched.replace(true) {
                spawn(Watch(deadlines.clone()).watch());
                be_polled_again().await;
            }
            let woken = pin!(woken.read(Vec::with_capacity(1)));
            match future::select(&mut work, woken).await {
                Either::Left((done, _)) => return Some(done),
                Either::Right(_) if left.get() == 0 => return None,
                // The task that watched the clock was dropped: wait again, with a new one.
                Either::Right(_) => drop(waiting),
            }
        }
    }

    fn end_all(&self) {
        let ended = self.0.waiting.take();
        ended.values().for_each(|waiting| waiting.left.set(0));
    }
}

impl Deadlines {
    fn wait(&self, left: Rc<Cell<u32>>, wake: StreamWriter<u8>) -> Listed<'_> {
        let number = self.next.get();
        self.next.set(number + 1);
        self.waiting.borrow_mut().insert(number, Waiting { left, _wake: wake });
        Listed(self, number)
    }
}

/// The entry of a waiting task, until it is dropped.
struct Listed<'a>(&'a Deadlines, u64);

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let gone = self.0.waiting.borrow_mut().remove(&self.1);
        drop(gone);
    }
}

/// The task that watches the clock.
///
/// If it is dropped early, it wakes all waiting tasks, and one of them starts another watch.
struct Watch(Rc<Deadlines>);

impl Watch {
    async fn watch(self) {
        while !self.0.waiting.borrow().is_empty() {
            sleep(self.0.limit / STEPS).await;
            self.0.waiting.borrow_mut().retain(|_, waiting| {
                waiting.left.set(waiting.left.get() - 1);
                waiting.left.get() > 0
            });
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.watched.set(false);
        drop(self.0.waiting.take());
    }
}

/// Lets the current task be polled again.
///
/// A spawned task begins only when the task that spawned it is woken, and the work may never wake
/// it.
async fn be_polled_again() {
    future::poll_fn(|context| {
        context.waker().wake_by_ref();
        Poll::Ready(())
    })
    .await;
}
