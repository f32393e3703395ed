//! What an instance knows of each counter.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use verve_protocol::counter_name::MAX_COUNTERS;
use verve_protocol::{CounterName, Id, Keys, Partition, Window};

use crate::seen::{MOST, Seen};
use crate::stats::Stats;

/// One counter, as far as this instance knows it.
pub struct Counted {
    /// The names of its keys.
    pub keys: Keys,
    /// What was counted in the open window.
    pub seen: Seen,
    /// What is to be told of requests.
    pub stats: Stats,
    /// The last window in which Redis was told that this counter is in use, if it has a name.
    pub told: Cell<Option<Window>>,
    /// The last window that was added to the index in Redis.
    pub indexed: Cell<Option<Window>>,
    /// The last window whose entry of the index went into the spool, unless one was added to the index since.
    pub index_spooled: Cell<Option<Window>>,
    /// The last window, by its start, and those of its partitions, whose sets of ids are known to have an expiry.
    expiring: RefCell<(u64, BTreeSet<Partition>)>,
}

impl Counted {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(keys: Keys) -> Self {
        Self {
            keys,
            seen: Seen::default(),
            stats: Stats::default(),
            told: Cell::default(),
            indexed: Cell::default(),
            index_spooled: Cell::default(),
            expiring: RefCell::default(),
        }
    }

    /// Whether this set of ids is known to have an expiry.
    #[must_use]
    pub fn expires(&self, window: Window, partition: Partition) -> bool {
        let expiring = self.expiring.borrow();
        expiring.0 == window.start() && expiring.1.contains(&partition)
    }

    /// Remembers that it has one.
    pub fn has_expiry(&self, window: Window, partition: Partition) {
        let mut expiring = self.expiring.borrow_mut();
        if expiring.0 != window.start() {
            *expiring = (window.start(), BTreeSet::new());
        }
        expiring.1.insert(partition);
    }

    /// Forgets what is in Redis.
    fn forget(&self) {
        self.seen.clear();
        self.told.set(None);
        self.indexed.set(None);
        self.expiring.take();
    }
}

/// All counters that are in use in this instance.
pub struct Counters {
    /// The one that has no name.
    pub unnamed: Rc<Counted>,
    named: RefCell<BTreeMap<CounterName, Rc<Counted>>>,
}

impl Counters {
    /// None is in use yet. `keys` are those of the one without a name.
    #[must_use]
    pub fn new(keys: Keys) -> Self {
        Self {
            unnamed: Rc::new(Counted::new(keys)),
            named: RefCell::default(),
        }
    }

    /// One that has a name.
    pub fn named(&self, name: CounterName) -> Rc<Counted> {
        let mut named = self.named.borrow_mut();
        if let Some(known) = named.get(&name) {
            return known.clone();
        }
        if named.len() as u64 > MAX_COUNTERS {
            // An application that makes up names does not fill the memory by that.
            named.retain(|_, counted| Rc::strong_count(counted) > 1);
        }
        let counted = Rc::new(Counted::new(self.unnamed.keys.named(name.clone())));
        named.insert(name, counted.clone());
        counted
    }

    /// Remembers that Redis has these ids.
    pub fn add_seen<'a>(&self, place: &Place, ids: impl IntoIterator<Item = &'a Id>) {
        let Place { counted, window } = place;
        ids.into_iter().for_each(|id| counted.seen.add(*window, *id));
        if counted.keys.counter().is_some() {
            // Together no more than the one that has no name.
            let named = self.named.borrow();
            if named.values().map(|counted| counted.seen.len()).sum::<usize>() > MOST {
                named.values().for_each(|counted| counted.seen.clear());
            }
        }
    }

    /// Forgets what is in Redis: it may have lost it.
    pub fn forget(&self) {
        self.unnamed.forget();
        self.named.borrow().values().for_each(|counted| counted.forget());
    }
}

/// A window of a counter.
#[derive(Clone)]
pub struct Place {
    /// The counter.
    pub counted: Rc<Counted>,
    /// The window.
    pub window: Window,
}

impl Place {
    /// Whether Redis has not been told in this window that the counter is in use: only one that has a name is told of.
    #[must_use]
    pub fn is_to_be_told(&self) -> bool {
        self.counted.keys.counter().is_some() && self.counted.told.get() != Some(self.window)
    }

    /// Whether Redis has not been told that the window has ids.
    #[must_use]
    pub fn is_to_be_indexed(&self) -> bool {
        // Any other one: a clock that is set goes back to windows of before.
        self.counted.indexed.get() != Some(self.window)
    }

    /// The name of the set of this partition's ids.
    #[must_use]
    pub fn ids(&self, partition: Partition) -> String {
        self.counted.keys.ids(self.window, partition)
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.counted, &other.counted) && self.window == other.window
    }
}

#[cfg(test)]
mod tests {
    use verve_protocol::WindowLength;

    use super::*;

    fn counters() -> Counters {
        Counters::new(Keys::new("verve".parse().expect("valid")))
    }

    fn named(counters: &Counters, number: u64) -> Place {
        Place {
            counted: counters.named(format!("game-{number}").parse().expect("valid")),
            window: WindowLength::try_new(60).expect("valid").window_at_ms(0),
        }
    }

    #[test]
    fn each_knows_its_own_ids() {
        let counters = counters();
        let [one, other] = [named(&counters, 1), named(&counters, 2)];
        counters.add_seen(&one, &[Id(1)]);
        assert!(one.counted.seen.has(one.window, Id(1)) && !other.counted.seen.has(one.window, Id(1)));
        assert!(one == named(&counters, 1) && one != other);
        assert_eq!(one.ids(Partition::Whole), "verve/game-1:ids:60:0");
        counters.forget();
        assert!(!one.counted.seen.has(one.window, Id(1)));
    }

    #[test]
    fn a_set_expires_once_that_is_known() {
        let place = named(&counters(), 1);
        let (counted, window, [one, other]) = (&place.counted, place.window, [Partition::Whole, Partition::Part(3)]);
        assert!(!counted.expires(window, one));
        counted.has_expiry(window, one);
        assert!(counted.expires(window, one) && !counted.expires(window, other));
        assert!(!counted.expires(window.next(), one));
        counted.has_expiry(window.next(), other);
        assert!(!counted.expires(window, one) && counted.expires(window.next(), other));
    }

    #[test]
    fn memory_is_bounded_however_many_there_are() {
        let counters = counters();
        let held = named(&counters, 0);
        for number in 0..3 * MAX_COUNTERS {
            let place = named(&counters, number);
            let ids: Vec<Id> = (0..MOST as i64 / 20).map(Id).collect();
            counters.add_seen(&place, &ids);
            let all = counters.named.borrow();
            assert!(all.len() as u64 <= MAX_COUNTERS + 1, "{}", all.len());
            assert!(all.values().map(|counted| counted.seen.len()).sum::<usize>() <= MOST);
        }
        // One that is in use is not forgotten.
        assert!(Rc::ptr_eq(&held.counted, &named(&counters, 0).counted));
    }
}
