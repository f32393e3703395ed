//! The counter of components for WASI 0.2, which every Spin since 2.0 can run. It answers as the other one does.
//!
//! An instance serves one request there, and each call of the host blocks it. So there is nothing to keep, nothing to share, and no
//! spool; what one id asks of Redis is one script.

use verve_counter_core::answer::{NotCounted, Outcome};
use verve_counter_core::callback::Callback;
use verve_counter_core::config::InvalidVariable;
use verve_counter_core::counter;
use verve_counter_core::instance::Instance;
use verve_protocol::{CounterName, Id};

use crate::spin2::{Spin2, done};

/// A counter of unique ids, which the application's variables describe. What the statistics are to be told yet of its requests they are told
/// when it is dropped: best after the response, since that is nothing to wait for.
pub struct Counter {
    host: Spin2,
    counter: counter::Counter<Spin2>,
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.host.finish();
    }
}

impl Counter {
    /// The counter.
    ///
    /// # Errors
    /// If a variable is not there, or not valid: it says which, and what was expected, and shows no password.
    pub fn get() -> Result<Self, InvalidVariable> {
        let host = Spin2::new();
        let instance = done(Instance::load(host.clone()))?;
        let counter = counter::Counter::new(instance);
        Ok(Self { host, counter })
    }

    /// Another counter, by its name: what is added to it is counted and reported by itself. The counter that has no name, from [`Counter::get`], is the
    /// one of Verve's own route. A namespace has at most [`MAX_COUNTERS`](verve_protocol::counter_name::MAX_COUNTERS) counters with a name; what is
    /// added to one more is not counted: [`Limit::Counters`](crate::Limit::Counters).
    #[must_use]
    pub fn open(&self, name: CounterName) -> Self {
        Self {
            host: self.host.clone(),
            counter: self.counter.open(name),
        }
    }

    /// Counts an id in the window that is open now.
    ///
    /// # Errors
    /// If the id is not counted. After [`NotCounted::Unavailable`] it may be.
    pub fn add(&self, id: Id) -> Result<Outcome, NotCounted> {
        self.add_with_callback(id, None)
    }

    /// The same, and has the reporter call somebody, soon after, with the window's count as it is then: once for each time that this is asked for, also for an
    /// id that is there already. An outcome says that both are recorded. The count is the one of the counter that has no name, whichever this is.
    ///
    /// # Errors
    /// If one of both is not recorded. The other one may be.
    pub fn add_with_callback(&self, id: Id, callback: Option<Callback>) -> Result<Outcome, NotCounted> {
        done(self.counter.add(id, callback))
    }

    /// Counts ids in the window that is open now, those of a partition at once, and answers what became of each, in their order. Of equal ones the
    /// first may be new.
    #[must_use = "what is not counted has to be added again"]
    pub fn add_many(&self, ids: &[Id]) -> Vec<Result<Outcome, NotCounted>> {
        done(self.counter.add_many(ids))
    }

    /// Counts, in the statistics alone, a request that had no valid id.
    pub fn count_invalid(&self) {
        self.counter.count_invalid();
    }
}
