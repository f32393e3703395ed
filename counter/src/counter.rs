//! What components of WASI 0.3 count by.

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

/// A counter of unique ids, which the application's variables describe. One for each instance of a component, however often it is asked for.
#[derive(Clone)]
pub struct Counter(counter::Counter<Spin3>);

impl Counter {
    /// The counter.
    ///
    /// # Errors
    /// If a variable is not there, or not valid: it says which, and what was expected, and shows no password.
    pub async fn get() -> Result<Self, InvalidVariable> {
        let slot = INSTANCE.with(Rc::clone);
        let load = async || Instance::load(Spin3).await;
        let instance = slot.get_on(&Spin3, load).await?;
        Ok(Self(counter::Counter::new(instance)))
    }

    /// Another counter, by its name: what is added to it is counted and reported by itself. The counter that has no name, from [`Counter::get`], is the
    /// one of Verve's own route. A namespace has at most [`MAX_COUNTERS`](verve_protocol::counter_name::MAX_COUNTERS) counters with a name; what is added to one more is not counted:
    /// [`Limit::Counters`](crate::Limit::Counters).
    #[must_use]
    pub fn open(&self, name: CounterName) -> Self {
        Self(self.0.open(name))
    }

    /// Counts an id in the window that is open now. Given up before it has answered, it may be counted all the same, and holds nobody else
    /// up.
    ///
    /// # Errors
    /// If the id is not counted. After [`NotCounted::Unavailable`] it may be.
    pub async fn add(&self, id: Id) -> Result<Outcome, NotCounted> {
        self.0.add(id, None).await
    }

    /// The same, and has the reporter call somebody, soon after, with the window's count as it is then: once for each time that this is asked for, also for an
    /// id that is there already. An outcome says that both are recorded. The count is the one of the counter that has no name, whichever this is.
    ///
    /// # Errors
    /// If one of both is not recorded. The other one may be.
    pub async fn add_with_callback(&self, id: Id, callback: Option<Callback>) -> Result<Outcome, NotCounted> {
        self.0.add(id, callback).await
    }

    /// Counts ids at once in the window that is open now, and answers what became of each, in their order. Of equal ones the first may be new.
    #[must_use = "what is not counted has to be added again"]
    pub async fn add_many(&self, ids: &[Id]) -> Vec<Result<Outcome, NotCounted>> {
        self.0.add_many(ids).await
    }

    /// Counts, in the statistics alone, a request that had no valid id.
    pub fn count_invalid(&self) {
        self.0.count_invalid();
    }

    /// Brings to Redis what may be left in the spool, in the background, as every first request of an instance does.
    pub fn look_into_spool(&self) {
        self.0.look_into_spool();
    }
}
