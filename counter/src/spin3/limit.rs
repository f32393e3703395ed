//! Ends what waits for too long, without a timer for each.
//!
//! To the host a timer is a call that has to be cancelled when it was not needed, which costs more than all the rest of a
//! request. So one task looks at the clock for all: whoever waits also reads from a stream that carries nothing, and is
//! woken by its writing end being dropped. This can go once the host's timers are as cheap as that.

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

/// In how many steps a time limit is measured: what takes too long is ended at most a step later.
const STEPS: u32 = 10;

/// Those who wait, all with the same time limit.
pub struct Limits(Rc<Deadlines>);

struct Deadlines {
    limit: Duration,
    waiting: RefCell<BTreeMap<u64, Waiting>>,
    /// The next one's number.
    next: Cell<u64>,
    /// Whether there is a task that looks at the clock.
    watched: Cell<bool>,
}

struct Waiting {
    /// Steps that it may wait yet, shared with who waits: 0 once they are over.
    left: Rc<Cell<u32>>,
    /// Dropped to wake it.
    _wake: StreamWriter<u8>,
}

impl Limits {
    /// For waiting at most for `limit`.
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
        // A step may have begun long ago.
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
                // Whoever looked at the clock was given up.
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

/// Somebody who waits, until it is dropped.
struct Listed<'a>(&'a Deadlines, u64);

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let gone = self.0.waiting.borrow_mut().remove(&self.1);
        drop(gone);
    }
}

/// Who looks at the clock. Dropped before its time, it wakes all who wait, and one of them has somebody else look.
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

/// What was spawned begins only when its task is woken, which the work may never do.
async fn be_polled_again() {
    future::poll_fn(|context| {
        context.waker().wake_by_ref();
        Poll::Ready(())
    })
    .await;
}
