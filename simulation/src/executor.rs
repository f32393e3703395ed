//! Runs tasks by a clock of its own, which goes on to the next event whenever nothing is left to do.
//!
//! As hosts of WASI 0.3 do, it has a task that is dropped take along what it has spawned, and no task may wake another one: that panics. Whoever waits for
//! another task waits for a [`Signal`], which is the executor's.

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

/// No task is polled.
const NONE: u64 = 0;

/// What all tasks run on.
pub struct Executor {
    /// Since the beginning, in microseconds.
    now_us: Cell<u64>,
    random: RefCell<Rng>,
    tasks: RefCell<BTreeMap<u64, Task>>,
    /// The next task's number, or event's.
    next: Cell<u64>,
    events: RefCell<BinaryHeap<Reverse<(u64, u64)>>>,
    due: RefCell<BTreeMap<u64, Event>>,
    awake: Arc<Awake>,
    /// How often each task was polled, by its number.
    polls: RefCell<BTreeMap<u64, u32>>,
    /// Whether a task is being dropped, in which nothing may be spawned.
    is_dropping: Cell<bool>,
    /// The task to drop, and after how many polls.
    to_drop: Cell<Option<(u64, u32)>>,
    /// When it began by tokio's clock, while that drives it.
    begun: Cell<Option<Instant>>,
    /// What drives it then, to be told of what comes before it expects anything.
    driver: RefCell<Option<Waker>>,
}

struct Task {
    /// Taken out while it is polled.
    work: Option<Work>,
    /// Who has spawned it, and takes it along.
    parent: u64,
    /// The process that it is of, whose tasks all end with it.
    process: u64,
}

/// The tasks to be polled, and the one that is.
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
    /// One whose choices all follow from the seed.
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

    /// The time since the beginning.
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

    /// A random number.
    #[must_use]
    pub fn random(&self) -> u64 {
        self.random.borrow_mut().u64(..)
    }

    /// A random number below `end`, which is not 0.
    #[must_use]
    pub fn below(&self, end: u64) -> u64 {
        self.random.borrow_mut().u64(..end)
    }

    /// Has a task dropped once it was polled so often, with all that it has spawned.
    pub fn drop_after(&self, task: u64, polls: u32) {
        self.to_drop.set(Some((task, polls)));
    }

    /// How often each task was polled so far, by its number: they are numbered in the order in which they are spawned.
    #[must_use]
    pub fn polls(&self) -> BTreeMap<u64, u32> {
        self.polls.borrow().clone()
    }

    /// Whether a task is being dropped.
    #[must_use]
    pub fn is_dropping(&self) -> bool {
        self.is_dropping.get()
    }

    /// How many tasks there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tasks.borrow().len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn number(&self) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        number
    }

    /// Runs a task. Spawned by another one, it goes when that is dropped, and stays when that has ended. Answers its number.
    ///
    /// # Panics
    /// While a task is being dropped.
    pub fn spawn(&self, work: impl Future<Output = ()> + 'static) -> u64 {
        let parent = self.awake.current.load(Ordering::Relaxed);
        let process = self.tasks.borrow().get(&parent).map_or(NONE, |parent| parent.process);
        self.spawn_in(process, work)
    }

    /// Runs a task of a process, which is any number.
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

    /// Ends all tasks of a process.
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

    /// Does something after a time.
    pub fn after(&self, time: Duration, event: impl FnOnce() + 'static) {
        let number = self.number();
        let at = self.now_us() + u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.events.borrow_mut().push(Reverse((at, number)));
        self.due.borrow_mut().insert(number, Box::new(event));
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    /// When the next event is, in microseconds since the beginning.
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

    /// Runs until the clock has come so far, by tokio's clock, which has to stand still but for this: so tasks of tokio's run along.
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

    /// What is next happens.
    fn do_next(&self) {
        let next = self.events.borrow_mut().pop();
        let event = next.and_then(|Reverse((_, number))| self.due.borrow_mut().remove(&number));
        if let Some(event) = event {
            event();
        }
    }

    /// Runs until the clock has come so far, or nothing happens any more.
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

    /// Polls one of the tasks that are awake. Says whether there was one.
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

    /// Drops a task and what it has spawned.
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

/// Something that happens once, and that one task may wait for.
#[derive(Clone, Default)]
pub struct Signal(Rc<Happening>);

#[derive(Default)]
struct Happening {
    has_happened: Cell<bool>,
    waiting: RefCell<Option<Waker>>,
}

impl Signal {
    /// It happens: by an event, and never by a task.
    pub fn set(&self) {
        self.0.has_happened.set(true);
        if let Some(waker) = self.0.waiting.take() {
            waker.wake();
        }
    }

    /// Waits for it.
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
        let said = Rc::new(RefCell::new(Vec::new()));
        for seconds in [3, 1, 2] {
            let (executor, said) = (executor.clone(), said.clone());
            let inner = executor.clone();
            executor.spawn(async move {
                let signal = Signal::default();
                let set = signal.clone();
                inner.after(Duration::from_secs(seconds), move || set.set());
                signal.wait().await;
                said.borrow_mut().push((seconds, inner.now().as_secs()));
            });
        }
        executor.run_until(Duration::from_secs(10));
        assert_eq!(*said.borrow(), [(1, 1), (2, 2), (3, 3)]);
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
    fn what_is_dropped_takes_along_what_it_has_spawned() {
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
