//! The ids that Redis has acknowledged for the current window.
//!
//! A repeated id is a duplicate, without another request to Redis.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use verve_protocol::{Id, Window};

/// The maximum number of ids in the cache: about 2 MB of the instance's memory.
///
/// When the cache has this many, all are forgotten.
pub const MOST: usize = 65_536;

/// Ids of one window.
#[derive(Debug, Default)]
pub struct DedupCache {
    window: Cell<Option<Window>>,
    ids: RefCell<BTreeSet<i64>>,
}

impl DedupCache {
    /// Returns whether Redis is known to have the id.
    #[must_use]
    pub fn has(&self, window: Window, id: Id) -> bool {
        self.window.get() == Some(window) && self.ids.borrow().contains(&id.0)
    }

    /// Remembers that Redis has the id.
    ///
    /// A new window replaces an older one, never the reverse.
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

    /// Returns the number of ids in the cache.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.borrow().len()
    }

    /// Returns whether the cache is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all ids: Redis may have lost them.
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
        let dedup = DedupCache::default();
        assert!(!dedup.has(window, Id(1)));
        dedup.add(window, Id(1));
        assert!(dedup.has(window, Id(1)));
        assert!(!dedup.has(window, Id(2)) && !dedup.has(window.next(), Id(1)));
        dedup.add(window.next(), Id(2));
        assert!(dedup.has(window.next(), Id(2)));
        // A slow request adds its id to the window before.
        dedup.add(window, Id(3));
        assert!(!dedup.has(window, Id(1)) && !dedup.has(window, Id(3)) && dedup.has(window.next(), Id(2)));
        dedup.clear();
        assert!(!dedup.has(window.next(), Id(2)));
    }

    #[test]
    fn memory_is_bounded() {
        let window = WindowLength::try_new(60).expect("valid").window_at_ms(0);
        let dedup = DedupCache::default();
        for id in 0..3 * MOST as i64 {
            dedup.add(window, Id(id));
            assert!(dedup.ids.borrow().len() <= MOST);
            assert!(dedup.has(window, Id(id)));
        }
    }
}
