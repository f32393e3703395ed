//! What an instance knows of one counter.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use verve_protocol::{Keys, Partition, Window};

use crate::seen::Seen;
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
    /// The last window, by its start, and those of its partitions, whose sets of ids are known to have an expiry.
    expiring: RefCell<(u64, BTreeSet<Partition>)>,
}

impl Counted {
    /// Nothing is known yet.
    pub fn new(keys: Keys) -> Self {
        Self {
            keys,
            seen: Seen::default(),
            stats: Stats::default(),
            told: Cell::default(),
            expiring: RefCell::default(),
        }
    }

    /// Whether this set of ids is not known to have an expiry. From now on it is.
    pub fn is_first(&self, window: Window, partition: Partition) -> bool {
        let mut expiring = self.expiring.borrow_mut();
        if expiring.0 != window.start() {
            *expiring = (window.start(), BTreeSet::new());
        }
        expiring.1.insert(partition)
    }

    /// It has none after all.
    pub fn has_no_expiry(&self, partition: Partition) {
        self.expiring.borrow_mut().1.remove(&partition);
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
    /// The name of the set of this partition's ids.
    pub fn ids(&self, partition: Partition) -> String {
        self.counted.keys.ids(self.window, partition)
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.counted, &other.counted) && self.window == other.window
    }
}
