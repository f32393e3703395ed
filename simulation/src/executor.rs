//! Runs tasks on a simulated clock that jumps to the next event if all tasks wait.
//!
//! It behaves like hosts of WASI 0.3: if a task is dropped, the tasks that it spawned are dropped
//! too. A task that wakes another task panics. To wait for another task, a task waits for a
//! [`Signal`], which an event of the executor sets.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use fastrand::Rng;
use tokio::time::{Instant, sleep_until};

type Work = Pin<Box<dyn Future<Output = ()>>>;
type Event = Box<dyn FnOnce()>;

/// The number that means that no task is polled.
const NONE: u64 = 0;

/// The executor of all tasks.
pub struct Executor {
    /// The time since the beginning, in microseconds.
    now_us: Cell<u64>,
    random: RefCell<Rng>,
    tasks: RefCell<BTreeMap<u64, Task>>,
    /// The number of the next task or event.
    next: Cell<u64>,
    events: RefCell<BinaryHeap<Reverse<(u64, u64)>>>,
    due: RefCell<BTreeMap<u64, Event>>,
    awake: Arc<Awake>,
    /// How many times each task was polled, by its number.
    polls: RefCell<BTreeMap<u64, u32>>,
    /// Whether a task is being dropped; meanwhile nothing may be spawned.
    is_dropping: Cell<bool>,
    /// The task to drop, and the number of polls after which it is dropped.
    to_drop: Cell<Option<(u64, u32)>>,
    /// When the executor began on tokio's clock, if that clock drives it.
    begun: Cell<Option<Instant>>,
    /// The waker of [`Executor::drive`].
    ///
    /// Each new event wakes it, since that event may be earlier than the one it waits for.
    driver: RefCell<Option<Waker>>,
}

struct Task {
    /// `None` while the task is polled.
    work: Option<Work>,
    /// The task that spawned it. If that task is dropped, this task is dropped too.
    parent: u64,
    /// The process of the task. If the process is killed, all its tasks end.
    process: u64,
}

/// The tasks to poll, and the task that is being polled.
#[derive(Default)]
struct Awake {
    tasks: Mutex<Vec<u64>>,
    current: AtomicU64,
}

struct TaskWaker {
    task: u64,
    awake: Arc<Awake>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        let current = self.awake.current.load(Ordering::Relaxed);
        assert!(
            current == NONE || current == self.task,
            "task {current} wakes task {}, which a host would not let it",
            self.task
        );
        self.awake
            .tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(self.task);
    }
}

impl Executor {
    /// Creates an executor; the seed determines all its choices.
    #[must_use]
    pub fn new(seed: u64) -> Rc<Self> {
        Rc::new(Self {
            now_us: Cell::new(0),
            random: RefCell::new(Rng::with_seed(seed)),
            tasks: RefCell::default(),
            next: Cell::new(NONE + 1),
            events: RefCell::default(),
            due: RefCell::default(),
            awake: Arc::default(),
            polls: RefCell::default(),
            is_dropping: Cell::default(),
            to_drop: Cell::default(),
            begun: Cell::default(),
            driver: RefCell::default(),
        })
    }

    /// Returns the time since the beginning.
    #[must_use]
    pub fn now(&self) -> Duration {
        Duration::from_micros(self.now_us())
    }

    fn now_us(&self) -> u64 {
        let driven = self.begun.get().map_or(0, |begun| {
            u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX)
        });
        self.now_us.get().max(driven)
    }

    /// Returns a random number.
    #[must_use]
    pub fn random(&self) -> u64 {
        self.random.borrow_mut().u64(..)
    }

    /// Returns a random number below `end`, which must not be 0.
    #[must_use]
    pub fn below(&self, end: u64) -> u64 {
        self.random.borrow_mut().u64(..end)
    }

    /// Drops a task and all tasks that it spawned once it was polled `polls` times.
    pub fn drop_after(&self, task: u64, polls: u32) {
        self.to_drop.set(Some((task, polls)));
    }

    /// Returns how many times each task was polled so far, by its number.
    ///
    /// The numbers follow the order in which tasks are spawned.
    #[must_use]
    pub fn polls(&self) -> BTreeMap<u64, u32> {
        self.polls.borrow().clone()
    }

    /// Returns whether a task is being dropped.
    #[must_use]
    pub fn is_dropping(&self) -> bool {
        self.is_dropping.get()
    }

    /// Returns the number of tasks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tasks.borrow().len()
    }

    /// Returns whether there are no tasks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn number(&self) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        number
    }

    /// Spawns a task and returns its number.
    ///
    /// If another task spawns it, it is dropped together with that task, but continues if that task
    /// ends.
    ///
    /// # Panics
    /// While a task is being dropped.
    pub fn spawn(&self, work: impl Future<Output = ()> + 'static) -> u64 {
        let parent = self.awake.current.load(Ordering::Relaxed);
        let process = self.tasks.borrow().get(&parent).map_or(NONE, |parent| parent.process);
        self.spawn_in(process, work)
    }

    /// Spawns a task of a process, and returns the task's number.
    ///
    /// A process can be any number.
    ///
    /// # Panics
    /// While a task is being dropped.
    pub fn spawn_in(&self, process: u64, work: impl Future<Output = ()> + 'static) -> u64 {
        assert!(
            !self.is_dropping.get(),
            "a task is spawned while another one is dropped"
        );
        let number = self.number();
        let task = Task {
            work: Some(Box::pin(work)),
            parent: self.awake.current.load(Ordering::Relaxed),
            process,
        };
        self.tasks.borrow_mut().insert(number, task);
        self.wake(number);
        number
    }

    /// Drops all tasks of a process.
    pub fn kill(&self, process: u64) {
        let of_process: Vec<u64> = {
            let tasks = self.tasks.borrow();
            let all = tasks.iter().filter(|(_, task)| task.process == process);
            all.map(|(number, _)| *number).collect()
        };
        of_process.into_iter().for_each(|task| self.give_up(task));
    }

    fn wake(&self, task: u64) {
        let mut tasks = self.awake.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.push(task);
    }

    /// Runs an event after a time.
    pub fn after(&self, time: Duration, event: impl FnOnce() + 'static) {
        let number = self.number();
        let at = self.now_us() + u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.events.borrow_mut().push(Reverse((at, number)));
        self.due.borrow_mut().insert(number, Box::new(event));
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    /// Returns the time of the next event, in microseconds since the beginning.
    fn next_us(&self) -> Option<u64> {
        self.events.borrow().peek().map(|Reverse((at, _))| *at)
    }

    fn has_awake(&self) -> bool {
        !self
            .awake
            .tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }

    /// Runs until the time `end` on tokio's clock.
    ///
    /// Tokio's clock must be paused, so that only this function advances it. Tasks of tokio then
    /// run on the same clock.
    pub async fn drive(&self, end: Duration) {
        let end_us = u64::try_from(end.as_micros()).unwrap_or(u64::MAX);
        let begun = self.begun.get().unwrap_or_else(|| Instant::now() - self.now());
        self.begun.set(Some(begun));
        loop {
            while self.poll_one() {}
            let now_us = self.now_us();
            self.now_us.set(now_us);
            if self.next_us().is_some_and(|at| at <= now_us) {
                self.do_next();
                continue;
            }
            if now_us >= end_us {
                return;
            }
            let until_us = self.next_us().map_or(end_us, |at| at.min(end_us));
            let mut sleep = pin!(sleep_until(begun + Duration::from_micros(until_us)));
            poll_fn(|context| {
                self.driver.replace(Some(context.waker().clone()));
                if self.has_awake() || self.next_us().is_some_and(|at| at < until_us) {
                    return Poll::Ready(());
                }
                sleep.as_mut().poll(context)
            })
            .await;
        }
    }

    /// Runs the next event.
    fn do_next(&self) {
        let next = self.events.borrow_mut().pop();
        let event = next.and_then(|Reverse((_, number))| self.due.borrow_mut().remove(&number));
        if let Some(event) = event {
            event();
        }
    }

    /// Runs until the time `end`, or until there is nothing left to do.
    pub fn run_until(&self, end: Duration) {
        loop {
            if self.poll_one() {
                continue;
            }
            let Some(at) = self.next_us().filter(|at| u128::from(*at) <= end.as_micros()) else {
                break;
            };
            self.now_us.set(self.now_us.get().max(at));
            self.do_next();
        }
        let end = u64::try_from(end.as_micros()).unwrap_or(u64::MAX);
        self.now_us.set(self.now_us.get().max(end));
    }

    /// Runs for a time.
    pub fn run_for(&self, time: Duration) {
        self.run_until(self.now() + time);
    }

    /// Polls one of the awake tasks. Returns whether there was one.
    fn poll_one(&self) -> bool {
        let task = {
            let mut awake = self.awake.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            awake.sort_unstable();
            awake.dedup();
            if awake.is_empty() {
                return false;
            }
            let chosen = usize::try_from(self.below(awake.len() as u64)).unwrap_or_default();
            awake.remove(chosen)
        };
        let work = self.tasks.borrow_mut().get_mut(&task).and_then(|task| task.work.take());
        let Some(mut work) = work else {
            return true;
        };
        let waker = Waker::from(Arc::new(TaskWaker {
            task,
            awake: self.awake.clone(),
        }));
        self.awake.current.store(task, Ordering::Relaxed);
        let polled = work.as_mut().poll(&mut Context::from_waker(&waker));
        let polls = {
            let mut polls = self.polls.borrow_mut();
            let polls = polls.entry(task).or_default();
            *polls += 1;
            *polls
        };
        match polled {
            Poll::Ready(()) => {
                drop(work);
                self.tasks.borrow_mut().remove(&task);
            }
            Poll::Pending => {
                if let Some(kept) = self.tasks.borrow_mut().get_mut(&task) {
                    kept.work = Some(work);
                }
                if self.to_drop.get() == Some((task, polls)) {
                    self.give_up(task);
                }
            }
        }
        self.awake.current.store(NONE, Ordering::Relaxed);
        true
    }

    /// Drops a task and all tasks that it spawned.
    pub fn give_up(&self, task: u64) {
        let Some(given_up) = self.tasks.borrow_mut().remove(&task) else {
            return;
        };
        let before = self.awake.current.swap(task, Ordering::Relaxed);
        self.is_dropping.set(true);
        drop(given_up);
        self.is_dropping.set(false);
        self.awake.current.store(before, Ordering::Relaxed);
        let children: Vec<u64> = {
            let tasks = self.tasks.borrow();
            let children = tasks.iter().filter(|(_, child)| child.parent == task);
            children.map(|(number, _)| *number).collect()
        };
        children.into_iter().for_each(|child| self.give_up(child));
    }
}

/// A signal that is set once, and that one task can wait for.
#[derive(Clone, Default)]
pub struct Signal(Rc<Happening>);

#[derive(Default)]
struct Happening {
    has_happened: Cell<bool>,
    waiting: RefCell<Option<Waker>>,
}

impl Signal {
    /// Sets the signal. Only an event may call this, never a task.
    pub fn set(&self) {
        self.0.has_happened.set(true);
        if let Some(waker) = self.0.waiting.take() {
            waker.wake();
        }
    }

    /// Waits until the signal is set.
    pub async fn wait(&self) {
        poll_fn(|context| {
            if self.0.has_happened.get() {
                return Poll::Ready(());
            }
            self.0.waiting.replace(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_goes_to_the_next_event() {
        let executor = Executor::new(1);
        let wakes = Rc::new(RefCell::new(Vec::new()));
        for seconds in [3, 1, 2] {
            let (executor, wakes) = (executor.clone(), wakes.clone());
            let inner = executor.clone();
            executor.spawn(async move {
                let signal = Signal::default();
                let set = signal.clone();
                inner.after(Duration::from_secs(seconds), move || set.set());
                signal.wait().await;
                wakes.borrow_mut().push((seconds, inner.now().as_secs()));
            });
        }
        executor.run_until(Duration::from_secs(10));
        assert_eq!(*wakes.borrow(), [(1, 1), (2, 2), (3, 3)]);
        assert!(executor.is_empty());
        assert_eq!(executor.now(), Duration::from_secs(10));
    }

    #[test]
    #[should_panic(expected = "which a host would not let it")]
    fn a_task_that_wakes_another_one_is_found() {
        let executor = Executor::new(1);
        let signal = Signal::default();
        let set = signal.clone();
        executor.spawn(async move { signal.wait().await });
        executor.run_for(Duration::ZERO);
        executor.spawn(async move { set.set() });
        executor.run_for(Duration::ZERO);
    }

    #[test]
    fn dropping_a_process_ends_its_children() {
        let executor = Executor::new(1);
        let inner = executor.clone();
        let parent = executor.spawn(async move {
            inner.spawn(std::future::pending());
            std::future::pending().await
        });
        executor.spawn(std::future::pending());
        executor.drop_after(parent, 1);
        executor.run_for(Duration::ZERO);
        assert_eq!(executor.len(), 1);
    }
}
