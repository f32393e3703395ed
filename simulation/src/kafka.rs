//! A model of a Kafka broker.
//!
//! It has one topic and one transactional id. Only the latest producer may publish.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use send_wrapper::SendWrapper;
use verve_protocol::{CounterName, WindowRecord};
use verve_reporter::simulated::{Begun, CounterRecord, Publish, Sessions, Unpublished};

use crate::gate::Gate;
use crate::mutation::Into;
use crate::redis::Link;
use crate::world::{Line, World};

/// How long a producer waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(6);

/// The broker.
#[derive(Default)]
pub struct Broker {
    /// Whether the broker is reachable.
    pub link: Cell<Link>,
    /// The latest producer.
    epoch: Cell<u64>,
    committed: RefCell<Vec<Committed>>,
    /// The longest time that a commit takes, in milliseconds.
    pub commit_ms: Cell<u64>,
}

/// A record that consumers read.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The name of the counter, if it has one.
    pub counter: Option<CounterName>,
    /// When it was committed, in Unix milliseconds.
    pub at_ms: u64,
    /// The record.
    pub record: WindowRecord,
}

impl Broker {
    /// Returns the records that consumers read.
    #[must_use]
    pub fn committed(&self) -> Vec<Committed> {
        self.committed.borrow().clone()
    }
}

/// A replica's client for the broker.
#[derive(Clone)]
pub struct Client(SendWrapper<Rc<Inner>>);

#[derive(Clone)]
struct Inner {
    world: Rc<World>,
    broker: Rc<Broker>,
    gate: Rc<Gate>,
}

impl Client {
    /// Creates the client of a replica, which pauses while `gate` is closed.
    #[must_use]
    pub fn new(world: &Rc<World>, broker: &Rc<Broker>, gate: &Rc<Gate>) -> Self {
        Self(SendWrapper::new(Rc::new(Inner {
            world: world.clone(),
            broker: broker.clone(),
            gate: gate.clone(),
        })))
    }
}

/// Publishes for one holder of the lease.
pub struct Session {
    inner: SendWrapper<Rc<Inner>>,
    /// The number of this producer, if it has begun.
    epoch: Option<u64>,
}

impl Sessions for Client {
    type Session = Session;

    fn session(&self) -> Session {
        Session {
            inner: self.0.clone(),
            epoch: None,
        }
    }
}

impl Inner {
    /// Runs `what` on the broker, and waits for the answer.
    async fn ask<T: 'static>(&self, what: impl FnOnce(&World, &Broker) -> T + 'static) -> Result<T, Unpublished> {
        let (world, broker, line) = (self.world.clone(), self.broker.clone(), Line::default());
        let answered = self.world.ask(&self.gate, &line, TIMEOUT, move || {
            let done = || Ok(what(&world, &broker));
            broker.link.get().carry(Err(Unpublished::Away), done)
        });
        answered.await.unwrap_or(Err(Unpublished::Away))
    }
}

impl Publish for Session {
    fn begin(&mut self) -> impl Future<Output = Result<Begun, Unpublished>> + Send {
        SendWrapper::new(async {
            if self.epoch.is_some() {
                return Ok(Begun::Before);
            }
            let begun = self.inner.ask(|world, broker| {
                world.note(|| "kafka: another producer".to_owned());
                broker.epoch.update(|epoch| epoch + 1);
                broker.epoch.get()
            });
            self.epoch = Some(begun.await?);
            Ok(Begun::Now)
        })
    }

    fn publish(&mut self, records: &[CounterRecord]) -> impl Future<Output = Result<(), Unpublished>> + Send {
        let records = records.to_vec();
        SendWrapper::new(async move {
            // A producer cannot be used again after a publish that failed.
            let Some(epoch) = self.epoch.take() else {
                return Err(Unpublished::Away);
            };
            // Another producer may overtake the commit on its way.
            let commit_ms = self.inner.broker.commit_ms.get();
            let commit = Duration::from_millis(self.inner.world.executor.below(commit_ms + 1));
            self.inner.world.alarm(commit).wait().await;
            let published = self.inner.ask(move |world, broker| {
                let is_latest = broker.epoch.get() == epoch;
                let is_latest = is_latest || world.has(|into| matches!(into, Into::NoFence));
                world.note(|| format!("kafka: producer {epoch} (latest: {is_latest}): {records:?}"));
                if is_latest && !world.has(|into| matches!(into, Into::NoCommit)) {
                    let at_ms = world.now_us() / 1000;
                    let records = records.into_iter().map(|CounterRecord { counter, record }| Committed {
                        counter,
                        at_ms,
                        record,
                    });
                    broker.committed.borrow_mut().extend(records);
                }
                is_latest
            });
            if !published.await? {
                return Err(Unpublished::Fenced);
            }
            self.epoch = Some(epoch);
            Ok(())
        })
    }
}
