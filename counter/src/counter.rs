//! The counter for components of WASI 0.3.

use std::rc::Rc;

use verve_counter_core::answer::{NotCounted, Outcome};
use verve_counter_core::callback::Callback;
use verve_counter_core::config::InvalidVariable;
use verve_counter_core::counter;
use verve_counter_core::instance::Instance;
use verve_counter_core::single_flight::SingleFlight;
use verve_protocol::{CounterName, Id};

use crate::spin3::Spin3;

thread_local! {
    static INSTANCE: Rc<SingleFlight<Rc<Instance<Spin3>>, InvalidVariable>> = Rc::default();
}

/// A counter of unique ids, which the application's variables configure.
///
/// Each instance of a component has one, however often it calls [`Counter::get`].
#[derive(Clone)]
pub struct Counter(counter::Counter<Spin3>);

impl Counter {
    /// Returns the unnamed counter.
    ///
    /// # Errors
    /// If a variable is missing or invalid. The error names the variable and what was expected, and
    /// contains no password.
    pub async fn get() -> Result<Self, InvalidVariable> {
        let slot = INSTANCE.with(Rc::clone);
        let load = async || Instance::load(Spin3).await;
        let instance = slot.get_on(&Spin3, load).await?;
        Ok(Self(counter::Counter::new(instance)))
    }

    /// Returns a named counter, which is counted and reported separately.
    ///
    /// The unnamed counter, from [`Counter::get`], is that of requests that name no counter. A
    /// namespace has at most as many named counters as the variable `counter_limit` permits. Ids
    /// that are added to a further one are not counted:
    /// [`Limit::Counters`](crate::Limit::Counters).
    #[must_use]
    pub fn open(&self, name: CounterName) -> Self {
        Self(self.0.open(name))
    }

    /// Returns a named counter, if the variable `counters` permits requests to use it.
    ///
    /// For names that come from outside. An application that chooses the names itself uses
    /// [`Counter::open`].
    #[must_use]
    pub fn open_permitted(&self, name: CounterName) -> Option<Self> {
        self.0.open_permitted(name).map(Self)
    }

    /// Counts an id in the window that is open now.
    ///
    /// If the future is dropped before it is ready, the id may still be counted, and no other call
    /// is delayed.
    ///
    /// # Errors
    /// If the id is not counted. After [`NotCounted::Unavailable`], it may be counted nevertheless.
    pub async fn add(&self, id: Id) -> Result<Outcome, NotCounted> {
        self.0.add(id, None).await
    }

    /// Counts an id like [`Counter::add`], and requests a callback.
    ///
    /// Soon afterwards, the reporter calls the endpoint with the count that the window then has. It
    /// does so once for each request, also if the id is a duplicate. An outcome means that both the
    /// id and the callback are recorded.
    ///
    /// # Errors
    /// If the id or the callback is not recorded. The other one may be recorded.
    pub async fn add_with_callback(&self, id: Id, callback: Option<Callback>) -> Result<Outcome, NotCounted> {
        self.0.add(id, callback).await
    }

    /// Counts ids together in the open window, and returns their outcomes in order.
    ///
    /// Of equal ids, the first may be new.
    #[must_use = "an id that is not counted has to be added again"]
    pub async fn add_many(&self, ids: &[Id]) -> Vec<Result<Outcome, NotCounted>> {
        self.0.add_many(ids).await
    }

    /// Counts a request without a valid id, in the statistics only.
    pub fn count_invalid(&self) {
        self.0.count_invalid();
    }

    /// Drains what may be left in the spool into Redis, in the background.
    ///
    /// The first request of each instance does this too.
    pub fn look_into_spool(&self) {
        self.0.look_into_spool();
    }
}
