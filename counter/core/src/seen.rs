//! The ids that Redis has acknowledged for the current window: a repeated one is a duplicate without asking Redis again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use verve_protocol::{Id, Window};

/// The most ids remembered: some 2 MB of the instance's memory. Once there are so many, all are forgotten.
pub const MOST: usize = 65_536;

/// Ids of one window.
#[derive(Debug, Default)]
pub struct Seen {
    window: Cell<Option<Window>>,
    ids: RefCell<BTreeSet<i64>>,
}

impl Seen {
    /// Whether Redis is known to have the id.
    #[must_use]
    pub fn has(&self, window: Window, id: Id) -> bool {
        self.window.get() == Some(window) && self.ids.borrow().contains(&id.0)
    }

    /// Remembers that Redis has the id. A new window takes the place of an older one, never the other way round.
    pub fn add(&self, window: Window, id: Id) {
        if self.window.get().is_some_and(|known| known > window) {
            return;
        }
        let mut ids = self.ids.borrow_mut();
        if self.window.replace(Some(window)) != Some(window) || ids.len() == MOST {
            ids.clear();
        }
        ids.insert(id.0);
    }

    /// How many ids are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.borrow().len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all: Redis may have lost them.
    pub fn clear(&self) {
        self.ids.borrow_mut().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use verve_protocol::WindowLength;

    #[test]
    fn ids_are_known_in_their_window_alone() {
        let window = WindowLength::try_new(60).expect("valid").window_at_ms(0);
        let seen = Seen::default();
        assert!(!seen.has(window, Id(1)));
        seen.add(window, Id(1));
        assert!(seen.has(window, Id(1)));
        assert!(!seen.has(window, Id(2)) && !seen.has(window.next(), Id(1)));
        seen.add(window.next(), Id(2));
        assert!(seen.has(window.next(), Id(2)));
        // A request that took long comes back to the window before.
        seen.add(window, Id(3));
        assert!(!seen.has(window, Id(1)) && !seen.has(window, Id(3)) && seen.has(window.next(), Id(2)));
        seen.clear();
        assert!(!seen.has(window.next(), Id(2)));
    }

    #[test]
    fn memory_is_bounded() {
        let window = WindowLength::try_new(60).expect("valid").window_at_ms(0);
        let seen = Seen::default();
        for id in 0..3 * MOST as i64 {
            seen.add(window, Id(id));
            assert!(seen.ids.borrow().len() <= MOST);
            assert!(seen.has(window, Id(id)));
        }
    }
}
