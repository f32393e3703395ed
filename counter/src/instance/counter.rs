//! What a component counts by: a counter of this instance.

use std::rc::Rc;

use verve_protocol::keys::stats;
use verve_protocol::{CounterName, Id};
use wit_bindgen::spawn;

use super::drain::look_into_spool;
use super::{Due, INSTANCE, Instance, flush_later, load};
use crate::clock::{look_again, now_ms};
use verve_counter_core::alike::MOST;
use verve_counter_core::answer::{Limit, NotCounted, Outcome, statistic};
use verve_counter_core::callback::Callback;
use verve_counter_core::config::InvalidVariable;
use verve_counter_core::counted::{Counted, Place};

/// A counter of unique ids, which the application's variables describe. One for each instance of a component, however often it is asked for.
#[derive(Clone)]
pub struct Counter {
    instance: Rc<Instance>,
    counted: Rc<Counted>,
}

impl Counter {
    /// The counter.
    ///
    /// # Errors
    /// If a variable is not there, or not valid: it says which, and what was expected, and shows no password.
    pub async fn get() -> Result<Self, InvalidVariable> {
        let slot = INSTANCE.with(Rc::clone);
        let instance = slot.get(load, look_again).await?;
        let counted = instance.counters.unnamed.clone();
        Ok(Self { instance, counted })
    }

    /// Another counter, by its name: what is added to it is counted and reported by itself. The counter that has no name, from [`Counter::get`], is the
    /// one of Verve's own route. A namespace has at most [`MAX_COUNTERS`](verve_protocol::counter_name::MAX_COUNTERS) counters with a name; what is added to one more is not counted:
    /// [`Limit::Counters`].
    #[must_use]
    pub fn open(&self, name: CounterName) -> Self {
        Self {
            instance: self.instance.clone(),
            counted: self.instance.counters.named(name),
        }
    }

    /// Counts an id in the window that is open now. Given up before it has answered, it may be counted all the same, and holds nobody else
    /// up.
    ///
    /// # Errors
    /// If the id is not counted. After [`NotCounted::Unavailable`] it may be.
    pub async fn add(&self, id: Id) -> Result<Outcome, NotCounted> {
        self.add_with_callback(id, None).await
    }

    /// The same, and has the reporter call somebody, soon after, with the window's count as it is then: once for each time that this is asked for, also for an
    /// id that is there already. An outcome says that both are recorded. The count is the one of the counter that has no name, whichever this is.
    ///
    /// # Errors
    /// If one of both is not recorded. The other one may be.
    pub async fn add_with_callback(&self, id: Id, callback: Option<Callback>) -> Result<Outcome, NotCounted> {
        let place = self.place();
        let answer = self.instance.record(&place, id, callback).await;
        self.note(&place, answer);
        answer
    }

    /// Counts ids at once in the window that is open now, and answers what became of each, in their order. Of equal ones the first may be new.
    #[must_use = "what is not counted has to be added again"]
    pub async fn add_many(&self, ids: &[Id]) -> Vec<Result<Outcome, NotCounted>> {
        let place = self.place();
        let mut answers = Vec::with_capacity(ids.len());
        for ids in ids.chunks(MOST) {
            let recorded = ids.iter().zip(self.instance.record_ids(&place, ids, None).await);
            answers.extend(recorded.map(|(id, recorded)| self.instance.answer(&place, *id, recorded)));
        }
        answers.iter().for_each(|answer| self.note(&place, *answer));
        answers
    }

    /// Counts, in the statistics alone, a request that had no valid id.
    pub fn count_invalid(&self) {
        self.note_field(&self.place(), stats::INVALID);
    }

    /// The window that is open now.
    fn place(&self) -> Place {
        Place {
            counted: self.counted.clone(),
            window: self.instance.config.window_length.window_at_ms(now_ms()),
        }
    }

    fn note(&self, place: &Place, answer: Result<Outcome, NotCounted>) {
        // A counter that there may not be has no statistics.
        if answer != Err(NotCounted::Limited(Limit::Counters)) {
            self.note_field(place, statistic(answer));
        }
    }

    fn note_field(&self, place: &Place, field: &'static str) {
        if place.counted.stats.count(place.window, field) {
            spawn(flush_later(self.instance.clone(), Due(place.counted.clone())));
        }
    }

    /// Brings to Redis what may be left in the spool, in the background, as every first request of an instance does.
    pub fn look_into_spool(&self) {
        spawn(look_into_spool(self.instance.clone()));
    }
}
