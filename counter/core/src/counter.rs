//! What a component counts by: a counter of an instance.

use std::rc::Rc;

use verve_protocol::keys::stats;
use verve_protocol::{CounterName, Id};

use crate::alike::MOST;
use crate::answer::Answer;
use crate::callback::Callback;
use crate::counted::{Counted, Place};
use crate::instance::Instance;
use crate::ports::Host;

/// A counter of unique ids.
pub struct Counter<H: Host> {
    instance: Rc<Instance<H>>,
    counted: Rc<Counted>,
}

impl<H: Host> Clone for Counter<H> {
    fn clone(&self) -> Self {
        Self {
            instance: self.instance.clone(),
            counted: self.counted.clone(),
        }
    }
}

impl<H: Host> Counter<H> {
    /// The one of this instance that has no name.
    #[must_use]
    pub fn new(instance: Rc<Instance<H>>) -> Self {
        let counted = instance.counters.unnamed.clone();
        Self { instance, counted }
    }

    /// One that has a name.
    #[must_use]
    pub fn open(&self, name: CounterName) -> Self {
        Self {
            instance: self.instance.clone(),
            counted: self.instance.counters.named(name),
        }
    }

    /// Counts an id in the window that is open now, and has somebody called, if that is asked for.
    ///
    /// # Errors
    /// If one of both is not recorded.
    pub async fn add(&self, id: Id, callback: Option<Callback>) -> Answer {
        self.instance.record(&self.place(), id, callback).await
    }

    /// Counts ids in the window that is open now.
    pub async fn add_many(&self, ids: &[Id]) -> Vec<Answer> {
        let place = self.place();
        let mut answers = Vec::with_capacity(ids.len());
        for ids in ids.chunks(MOST) {
            answers.extend(self.instance.record_many(&place, ids).await);
        }
        answers
    }

    /// Counts, in the statistics alone, a request that had no valid id.
    pub fn count_invalid(&self) {
        self.instance.count(&self.place(), stats::INVALID);
    }

    /// Brings to Redis what may be left in the spool, in the background.
    pub fn look_into_spool(&self) {
        self.instance.look_into_spool();
    }

    /// The window that is open now.
    fn place(&self) -> Place {
        Place {
            counted: self.counted.clone(),
            window: self.instance.window(),
        }
    }
}
