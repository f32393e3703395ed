//! The counter for components of WASI 0.2, which every Spin since 2.0 can run.
//!
//! Its answers are the same as those of the other counter. An instance serves one request, and each
//! call to the host blocks it. Therefore it keeps and shares nothing, and has no spool. One script
//! in Redis does everything for one id.

use verve_counter_core::answer::{NotCounted, Outcome};
use verve_counter_core::callback::Callback;
use verve_counter_core::config::InvalidVariable;
use verve_counter_core::counter;
use verve_counter_core::instance::Instance;
use verve_protocol::{CounterName, Id};

use crate::spin2::{Spin2, done};

/// A counter of unique ids, which the application's variables configure.
///
/// When it is dropped, it flushes the statistics of its requests that are not flushed yet. Drop it
/// after the response, so that the client does not wait for that.
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
    /// Returns the unnamed counter.
    ///
    /// # Errors
    /// If a variable is missing or invalid. The error names the variable and what was expected, and
    /// contains no password.
    pub fn get() -> Result<Self, InvalidVariable> {
        let host = Spin2::new();
        let instance = done(Instance::load(host.clone()))?;
        let counter = counter::Counter::new(instance);
        Ok(Self { host, counter })
    }

    /// Returns a named counter, which is counted and reported separately.
    ///
    /// The unnamed counter, from [`Counter::get`], is that of requests that name no counter. A
    /// namespace has at most as many named counters as the variable `counter_limit` permits. Ids
    /// that are added to a further one are not counted:
    /// [`Limit::Counters`](crate::Limit::Counters).
    #[must_use]
    pub fn open(&self, name: CounterName) -> Self {
        Self {
            host: self.host.clone(),
            counter: self.counter.open(name),
        }
    }

    /// Returns a named counter, if the variable `counters` permits requests to use it.
    ///
    /// For names that come from outside. An application that chooses the names itself uses
    /// [`Counter::open`].
    #[must_use]
    pub fn open_permitted(&self, name: CounterName) -> Option<Self> {
        Some(Self {
            host: self.host.clone(),
            counter: self.counter.open_permitted(name)?,
        })
    }

    /// Counts an id in the window that is open now.
    ///
    /// # Errors
    /// If the id is not counted. After [`NotCounted::Unavailable`], it may be counted nevertheless.
    pub fn add(&self, id: Id) -> Result<Outcome, NotCounted> {
        self.add_with_callback(id, None)
    }

    /// Counts an id like [`Counter::add`], and requests a callback.
    ///
    /// Soon afterwards, the reporter calls the endpoint with the count that the window then has. It
    /// does so once for each request, also if the id is a duplicate. An outcome means that both the
    /// id and the callback are recorded.
    ///
    /// # Errors
    /// If the id or the callback is not recorded. The other one may be recorded.
    pub fn add_with_callback(&self, id: Id, callback: Option<Callback>) -> Result<Outcome, NotCounted> {
        done(self.counter.add(id, callback))
    }

    /// Counts ids in the open window, and returns their outcomes in order.
    ///
    /// The ids of a partition are added together. Of equal ids, the first may be new.
    #[must_use = "an id that is not counted has to be added again"]
    pub fn add_many(&self, ids: &[Id]) -> Vec<Result<Outcome, NotCounted>> {
        done(self.counter.add_many(ids))
    }

    /// Counts a request without a valid id, in the statistics only.
    pub fn count_invalid(&self) {
        self.counter.count_invalid();
    }
}
