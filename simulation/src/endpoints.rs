//! Endpoints that receive callbacks.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use send_wrapper::SendWrapper;
use verve_protocol::{CallbackJob, CounterName, Window};
use verve_reporter::simulated::{Call, Failure};

use crate::gate::Gate;
use crate::redis::Link;
use crate::world::{Line, World};

/// How long the reporter waits for an answer of an endpoint.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How an endpoint reacts to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// It works, and its link is in this state.
    Link(Link),
    /// It answers with this status.
    Status(u16),
}

/// A call that an endpoint received and accepted, even if its answer was lost.
#[derive(Clone, Debug)]
pub struct Received {
    /// The endpoint's URL.
    pub endpoint: String,
    /// The named counter of the count; `None` is the unnamed one.
    pub counter: Option<CounterName>,
    /// The window that the call is about.
    pub window: Window,
    /// The revision of the report; `None` if a request asked for the callback.
    pub revision: Option<u64>,
    /// The number of unique ids.
    pub count: u64,
}

/// The hosts `e0`, `e1` and so on.
pub struct Endpoints {
    moods: Vec<Cell<Mood>>,
    received: RefCell<Vec<Received>>,
}

impl Endpoints {
    /// Creates so many endpoints, all of which work.
    #[must_use]
    pub fn new(number: usize) -> Rc<Self> {
        let well = || Cell::new(Mood::Link(Link::Up));
        Rc::new(Self {
            moods: (0..number).map(|_| well()).collect(),
            received: RefCell::default(),
        })
    }

    /// Sets how a host reacts to calls.
    pub fn set(&self, host: usize, mood: Mood) {
        self.moods[host].set(mood);
    }

    /// Makes all endpoints work again.
    pub fn mend(&self) {
        self.moods.iter().for_each(|mood| mood.set(Mood::Link(Link::Up)));
    }

    /// Returns the calls that the endpoints received and accepted.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.received.borrow().clone()
    }

    fn mood(&self, host: &str) -> Mood {
        let number = host.trim_start_matches('e').split('.').next();
        let number: Option<usize> = number.and_then(|number| number.parse().ok());
        let mood = number.and_then(|number| self.moods.get(number));
        mood.map_or(Mood::Link(Link::Refused), Cell::get)
    }
}

/// A replica's client for endpoints.
pub struct Client(SendWrapper<Inner>);

struct Inner {
    world: Rc<World>,
    endpoints: Rc<Endpoints>,
    gate: Rc<Gate>,
}

impl Client {
    /// Creates the client of a replica, which pauses while `gate` is closed.
    #[must_use]
    pub fn new(world: &Rc<World>, endpoints: &Rc<Endpoints>, gate: &Rc<Gate>) -> Self {
        Self(SendWrapper::new(Inner {
            world: world.clone(),
            endpoints: endpoints.clone(),
            gate: gate.clone(),
        }))
    }
}

impl Call for Client {
    fn call(
        &self,
        id: &str,
        job: &CallbackJob,
        unique_count: u64,
    ) -> impl Future<Output = Result<u16, Failure>> + Send {
        let url = job.endpoint.to_url();
        let call = Received {
            endpoint: url.to_string(),
            counter: job.counter.clone(),
            window: job.window,
            revision: job.revision,
            count: unique_count,
        };
        let (host, id) = (url.host_str().unwrap_or_default().to_owned(), id.to_owned());
        let (world, gate) = (self.0.world.clone(), self.0.gate.clone());
        let endpoints = self.0.endpoints.clone();
        SendWrapper::new(async move {
            let (inner, line) = (world.clone(), Line::default());
            let answered = world.ask(&gate, &line, TIMEOUT, move || {
                let mood = endpoints.mood(&host);
                inner.note(|| format!("callback {id} ({mood:?}): {call:?}"));
                match mood {
                    Mood::Status(status) => Some(Err(Failure::from_status(status, None))),
                    Mood::Link(link) => link.carry(Err(failure("cannot connect")), || {
                        endpoints.received.borrow_mut().push(call);
                        Ok(200)
                    }),
                }
            });
            answered
                .await
                .unwrap_or_else(|| Err(failure("no response within 10 s")))
        })
    }
}

fn failure(error: &str) -> Failure {
    Failure {
        error: error.to_owned(),
        status: None,
        permanent: false,
        retry_after: None,
    }
}
