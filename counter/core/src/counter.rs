//! The counter that a component uses.

use std::rc::Rc;

use verve_protocol::keys::stats;
use verve_protocol::{CounterName, Id, WindowLengths};

use crate::alike::MOST;
use crate::answer::Answer;
use crate::callback::Callback;
use crate::counter_state::{CounterState, CounterWindow};
use crate::instance::Instance;
use crate::ports::Host;

/// A counter of unique ids.
pub struct Counter<H: Host> {
    instance: Rc<Instance<H>>,
    state: Rc<CounterState>,
}

impl<H: Host> Clone for Counter<H> {
    fn clone(&self) -> Self {
        Self {
            instance: self.instance.clone(),
            state: self.state.clone(),
        }
    }
}

impl<H: Host> Counter<H> {
    /// Returns the unnamed counter of this instance.
    #[must_use]
    pub fn new(instance: Rc<Instance<H>>) -> Self {
        let state = instance.counters.unnamed.clone();
        Self { instance, state }
    }

    /// Returns a named counter.
    #[must_use]
    pub fn open(&self, name: CounterName) -> Self {
        Self {
            instance: self.instance.clone(),
            state: self.instance.counters.named(name),
        }
    }

    /// Returns a named counter, if the variable `counters` permits requests to use it.
    #[must_use]
    pub fn open_permitted(&self, name: CounterName) -> Option<Self> {
        let is_permitted = self.instance.config.counters.permits(&name);
        is_permitted.then(|| self.open(name))
    }

    /// Counts an id in the open window, and records the callback if one is requested.
    ///
    /// # Errors
    /// If the id or the callback is not recorded.
    pub async fn add(&self, id: Id, callback: Option<Callback>) -> Answer {
        self.instance.record(&self.counter_window(), id, callback).await
    }

    /// Counts ids in the open window.
    pub async fn add_many(&self, ids: &[Id]) -> Vec<Answer> {
        let counter_window = self.counter_window();
        let mut answers = Vec::with_capacity(ids.len());
        for ids in ids.chunks(MOST) {
            answers.extend(self.instance.record_many(&counter_window, ids).await);
        }
        answers
    }

    /// Counts a request without a valid id, in the statistics only.
    pub fn count_invalid(&self) {
        self.instance
            .count_in_all(&self.counter_window(), [stats::INVALID; WindowLengths::MOST]);
    }

    /// Drains what may be left in the spool into Redis, in the background.
    pub fn look_into_spool(&self) {
        self.instance.look_into_spool();
    }

    /// Returns the open main window of this counter.
    fn counter_window(&self) -> CounterWindow {
        CounterWindow {
            state: self.state.clone(),
            window: self.instance.window(),
        }
    }
}
