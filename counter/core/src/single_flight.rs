//! A value that the first caller makes, while others wait for the same result.
//!
//! To the host, each request is a separate task. No task can drive or wake what another task waits
//! for. So the caller that makes the value drives the work, and the callers that wait check again
//! after a pause of their own.

use std::cell::RefCell;

use crate::ports::{Tasks, look_again};

/// A slot for a value of type `T`, which can be made, awaited and discarded.
#[derive(Debug)]
pub struct SingleFlight<T, E>(RefCell<Slot<T, E>>);

#[derive(Debug)]
struct Slot<T, E> {
    state: State<T>,
    /// The number of failed attempts to make it, and the last error.
    failures: u64,
    error: Option<E>,
}

#[derive(Clone, Debug)]
enum State<T> {
    Empty,
    Making,
    Made(T),
}

impl<T, E> Default for SingleFlight<T, E> {
    fn default() -> Self {
        Self(RefCell::new(Slot {
            state: State::Empty,
            failures: 0,
            error: None,
        }))
    }
}

impl<T: Clone, E: Clone> SingleFlight<T, E> {
    /// Returns the value. If it does not exist, `make` makes it.
    ///
    /// If another caller is making it, this one waits for the same result, a value or an error.
    ///
    /// # Errors
    /// The error of `make`. The next caller tries again.
    pub async fn get_on(&self, tasks: &impl Tasks, make: impl AsyncFnOnce() -> Result<T, E>) -> Result<T, E> {
        self.get(make, async || look_again(tasks).await).await
    }

    /// Does the same, with one `pause` after the other.
    async fn get(&self, make: impl AsyncFnOnce() -> Result<T, E>, pause: impl AsyncFn()) -> Result<T, E> {
        let failures = self.0.borrow().failures;
        loop {
            let state = self.0.borrow().state.clone();
            match state {
                State::Made(value) => return Ok(value),
                State::Making => pause().await,
                State::Empty => break,
            }
            let slot = self.0.borrow();
            if let Some(error) = slot.error.as_ref().filter(|_| slot.failures != failures) {
                return Err(error.clone());
            }
        }
        self.0.borrow_mut().state = State::Making;
        let unfinished = Unfinished(self);
        let result = make().await;
        std::mem::forget(unfinished);
        let mut slot = self.0.borrow_mut();
        match &result {
            Ok(value) => slot.state = State::Made(value.clone()),
            Err(error) => {
                slot.state = State::Empty;
                slot.failures += 1;
                slot.error = Some(error.clone());
            }
        }
        result
    }

    /// Returns the value, if it was made.
    pub fn made(&self) -> Option<T> {
        match &self.0.borrow().state {
            State::Made(value) => Some(value.clone()),
            State::Empty | State::Making => None,
        }
    }

    /// Discards the value if it is `outdated`. The next caller makes it again.
    pub fn clear_if(&self, outdated: impl FnOnce(&T) -> bool) {
        let mut slot = self.0.borrow_mut();
        if matches!(&slot.state, State::Made(value) if outdated(value)) {
            slot.state = State::Empty;
        }
    }
}

/// Empties the slot if the work is dropped before its end.
///
/// Then one of the waiting callers takes over.
struct Unfinished<'a, T, E>(&'a SingleFlight<T, E>);

impl<T, E> Drop for Unfinished<'_, T, E> {
    fn drop(&mut self) {
        self.0.0.borrow_mut().state = State::Empty;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::pending;
    use std::task::Poll;

    use futures::channel::oneshot;
    use futures::executor::block_on;
    use futures::future::{FutureExt, join, poll_fn};

    use super::*;

    /// Lets other tasks run once.
    async fn pause() {
        let mut paused = false;
        poll_fn(|context| {
            context.waker().wake_by_ref();
            if std::mem::replace(&mut paused, true) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    #[test]
    fn many_wait_for_one_making() {
        let once = SingleFlight::<u32, ()>::default();
        let (made, (open, opened)) = (Cell::new(0), oneshot::channel::<()>());
        let first = once.get(
            async || {
                made.set(made.get() + 1);
                opened.await.expect("opened");
                Ok(7)
            },
            pause,
        );
        let other = || once.get(async || unreachable!("one makes"), pause);
        let (values, _) = block_on(join(join(first, join(other(), other())), async { open.send(()) }));
        assert_eq!((values, made.get()), ((Ok(7), (Ok(7), Ok(7))), 1));
    }

    #[test]
    fn a_failure_is_shared_and_not_kept() {
        let once = SingleFlight::<u32, &str>::default();
        let (fail, failed) = oneshot::channel::<()>();
        let first = once.get(
            async || {
                failed.await.expect("sent");
                Err("down")
            },
            pause,
        );
        let second = once.get(async || unreachable!("one makes"), pause);
        let (values, _) = block_on(join(join(first, second), async { fail.send(()) }));
        assert_eq!(values, (Err("down"), Err("down")));
        assert_eq!(block_on(once.get(async || Ok(1), pause)), Ok(1));
    }

    #[test]
    fn when_the_maker_is_dropped_a_waiter_makes() {
        let once = SingleFlight::<u32, ()>::default();
        let mut maker = Box::pin(once.get(async || pending().await, pause));
        assert!((&mut maker).now_or_never().is_none());
        let mut waiter = Box::pin(once.get(async || Ok(2), pause));
        assert!((&mut waiter).now_or_never().is_none());
        drop(maker);
        assert_eq!(block_on(waiter), Ok(2));
    }

    #[test]
    fn only_an_outdated_value_is_given_up() {
        let once = SingleFlight::<u32, ()>::default();
        assert_eq!(block_on(once.get(async || Ok(1), pause)), Ok(1));
        once.clear_if(|v| *v == 2);
        assert_eq!(block_on(once.get(async || Ok(3), pause)), Ok(1));
        once.clear_if(|v| *v == 1);
        assert_eq!(block_on(once.get(async || Ok(3), pause)), Ok(3));
    }
}
