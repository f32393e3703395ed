//! The state that an instance keeps of each counter.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::rc::Rc;

use verve_protocol::{CounterName, Id, Keys, Partition, Window, WindowLength, WindowLengths};

use crate::dedup_cache::{DedupCache, MOST};
use crate::stats::Stats;

/// The state of one counter in this instance, for windows of one length.
pub struct CounterState {
    /// The names of its keys.
    pub keys: Keys,
    /// The dedup cache: the ids that were counted in each open window.
    ///
    /// Only the state for the main windows has it.
    pub dedup: DedupCache,
    /// The statistics that are not yet flushed.
    pub stats: Stats,
    /// The last main window in which a named counter was registered in Redis.
    pub registered: Cell<Option<Window>>,
    /// The last window that was added to the index in Redis.
    pub indexed: Cell<Option<Window>>,
    /// The last window whose index entry went into the spool.
    ///
    /// `None` again after a window was added to the index in Redis.
    pub index_spooled: Cell<Option<Window>>,
    /// The start of the last window, and its partitions whose sets are known to expire.
    expiring: RefCell<(u64, BTreeSet<Partition>)>,
    /// The state for windows that are longer than the main ones.
    longer: Vec<(WindowLength, Rc<Self>)>,
}

impl CounterState {
    /// Returns the state of a counter of which nothing is known yet.
    #[must_use]
    pub fn new(keys: Keys, lengths: &WindowLengths) -> Self {
        let longer = lengths.longer().iter();
        let state_of = |length: &WindowLength| (*length, Rc::new(Self::new(keys.clone(), &(*length).into())));
        Self {
            longer: longer.map(state_of).collect(),
            keys,
            dedup: DedupCache::default(),
            stats: Stats::default(),
            registered: Cell::default(),
            indexed: Cell::default(),
            index_spooled: Cell::default(),
            expiring: RefCell::default(),
        }
    }

    /// Returns whether this set of ids is known to have an expiry.
    #[must_use]
    pub fn expires(&self, window: Window, partition: Partition) -> bool {
        let expiring = self.expiring.borrow();
        expiring.0 == window.start() && expiring.1.contains(&partition)
    }

    /// Remembers that this set of ids has an expiry.
    pub fn has_expiry(&self, window: Window, partition: Partition) {
        let mut expiring = self.expiring.borrow_mut();
        if expiring.0 != window.start() {
            *expiring = (window.start(), BTreeSet::new());
        }
        expiring.1.insert(partition);
    }

    /// Forgets the known state of Redis.
    fn forget(&self) {
        self.dedup.clear();
        self.registered.set(None);
        self.indexed.set(None);
        self.expiring.take();
        self.longer.iter().for_each(|(_, state)| state.forget());
    }
}

/// All counters that are in use in this instance.
pub struct Counters {
    /// The unnamed counter.
    pub unnamed: Rc<CounterState>,
    named: RefCell<BTreeMap<CounterName, Rc<CounterState>>>,
    lengths: WindowLengths,
    /// The number of named counters from which unused ones are dropped.
    most: usize,
}

impl Counters {
    /// Creates the state in which no named counter is in use.
    ///
    /// `keys` are those of the unnamed counter. Of more than `most` named ones, those that no
    /// request uses are dropped.
    #[must_use]
    pub fn new(keys: Keys, lengths: WindowLengths, most: u32) -> Self {
        Self {
            unnamed: Rc::new(CounterState::new(keys, &lengths)),
            named: RefCell::default(),
            lengths,
            most: most as usize,
        }
    }

    /// Returns a named counter.
    pub fn named(&self, name: CounterName) -> Rc<CounterState> {
        let mut named = self.named.borrow_mut();
        if let Some(known) = named.get(&name) {
            return known.clone();
        }
        if named.len() > self.most {
            // An application that generates names must not fill the memory.
            named.retain(|_, state| Rc::strong_count(state) > 1);
        }
        let keys = self.unnamed.keys.named(name.clone());
        let state = Rc::new(CounterState::new(keys, &self.lengths));
        named.insert(name, state.clone());
        state
    }

    /// Remembers that Redis has these ids.
    pub fn add_seen<'a>(&self, counter_window: &CounterWindow, ids: impl IntoIterator<Item = &'a Id>) {
        let CounterWindow { state, window } = counter_window;
        ids.into_iter().for_each(|id| state.dedup.add(*window, *id));
        if state.keys.counter().is_some() {
            // All named counters together have no more than the unnamed one.
            let named = self.named.borrow();
            if named.values().map(|state| state.dedup.len()).sum::<usize>() > MOST {
                named.values().for_each(|state| state.dedup.clear());
            }
        }
    }

    /// Forgets the known state of Redis: it may have lost its data.
    pub fn forget(&self) {
        self.unnamed.forget();
        self.named.borrow().values().for_each(|state| state.forget());
    }
}

/// A window of a counter.
#[derive(Clone)]
pub struct CounterWindow {
    /// The counter.
    pub state: Rc<CounterState>,
    /// The window.
    pub window: Window,
}

impl CounterWindow {
    /// Returns this main window, and the longer windows that contain it.
    pub fn all(&self) -> impl Iterator<Item = Self> + '_ {
        let longer = self.state.longer.iter().map(|(length, state)| Self {
            state: state.clone(),
            window: self.window.within(*length),
        });
        iter::once(self.clone()).chain(longer)
    }

    /// Whether the counter must still be registered in Redis in this window.
    ///
    /// Only named counters are registered.
    #[must_use]
    pub fn must_be_registered(&self) -> bool {
        self.state.keys.counter().is_some() && self.state.registered.get() != Some(self.window)
    }

    /// Whether the window must still be added to the index in Redis.
    #[must_use]
    pub fn must_be_indexed(&self) -> bool {
        // Not a comparison by time: a clock that is set back returns to earlier windows.
        self.state.indexed.get() != Some(self.window)
    }

    /// Returns the key of the set of this partition's ids.
    #[must_use]
    pub fn ids(&self, partition: Partition) -> String {
        self.state.keys.ids(self.window, partition)
    }
}

impl PartialEq for CounterWindow {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.state, &other.state) && self.window == other.window
    }
}

#[cfg(test)]
mod tests {
    use verve_protocol::WindowLength;

    use super::*;

    const MOST_COUNTERS: u32 = 100;

    fn counters() -> Counters {
        let lengths = "60,3600".parse().expect("valid");
        Counters::new(Keys::new("verve".parse().expect("valid")), lengths, MOST_COUNTERS)
    }

    fn named(counters: &Counters, number: u64) -> CounterWindow {
        CounterWindow {
            state: counters.named(format!("game-{number}").parse().expect("valid")),
            window: WindowLength::try_new(60).expect("valid").window_at_ms(0),
        }
    }

    #[test]
    fn each_knows_its_own_ids() {
        let counters = counters();
        let [one, other] = [named(&counters, 1), named(&counters, 2)];
        counters.add_seen(&one, &[Id(1)]);
        assert!(one.state.dedup.has(one.window, Id(1)) && !other.state.dedup.has(one.window, Id(1)));
        assert!(one == named(&counters, 1) && one != other);
        assert_eq!(one.ids(Partition::Whole), "verve/game-1:ids:60:0");
        counters.forget();
        assert!(!one.state.dedup.has(one.window, Id(1)));
    }

    #[test]
    fn each_length_has_a_state_of_its_own() {
        let counters = counters();
        let main = named(&counters, 1);
        let main = CounterWindow {
            window: main.window.next(),
            ..main
        };
        let [of_minute, of_hour] = main.all().collect::<Vec<_>>().try_into().ok().expect("two");
        assert!(of_minute == main);
        let keys = [of_minute.ids(Partition::Whole), of_hour.ids(Partition::Whole)];
        assert_eq!(keys, ["verve/game-1:ids:60:60", "verve/game-1:ids:3600:0"]);
        of_hour.state.indexed.set(Some(of_hour.window));
        assert!(of_minute.must_be_indexed() && !of_hour.must_be_indexed());
        counters.forget();
        assert!(of_hour.must_be_indexed());
    }

    #[test]
    fn a_set_expires_once_that_is_known() {
        let counter_window = named(&counters(), 1);
        let (state, window, [one, other]) = (
            &counter_window.state,
            counter_window.window,
            [Partition::Whole, Partition::Part(3)],
        );
        assert!(!state.expires(window, one));
        state.has_expiry(window, one);
        assert!(state.expires(window, one) && !state.expires(window, other));
        assert!(!state.expires(window.next(), one));
        state.has_expiry(window.next(), other);
        assert!(!state.expires(window, one) && state.expires(window.next(), other));
    }

    #[test]
    fn memory_is_bounded_however_many_there_are() {
        let counters = counters();
        let held = named(&counters, 0);
        for number in 0..3 * u64::from(MOST_COUNTERS) {
            let counter_window = named(&counters, number);
            let ids: Vec<Id> = (0..MOST as i64 / 20).map(Id).collect();
            counters.add_seen(&counter_window, &ids);
            let all = counters.named.borrow();
            assert!(all.len() <= MOST_COUNTERS as usize + 1, "{}", all.len());
            assert!(all.values().map(|state| state.dedup.len()).sum::<usize>() <= MOST);
        }
        // A counter in use is not forgotten.
        assert!(Rc::ptr_eq(&held.state, &named(&counters, 0).state));
    }
}
