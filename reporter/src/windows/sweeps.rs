//! When Redis is searched through for what nobody expects.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use verve_protocol::Window;

/// When something was last done, to do it every so often.
#[derive(Default)]
pub struct Last(Option<Instant>);

impl Last {
    pub fn is_over(&self, every: Duration) -> bool {
        self.0.is_none_or(|last| last.elapsed() >= every)
    }

    pub fn is_now(&mut self) {
        self.0 = Some(Instant::now());
    }
}

/// Redis is searched through all its keys, so after a search that took long it is left alone for so many times as long.
const REST: u32 = 50;

/// When Redis may be searched again. All that is reported by one process takes turns, so that many counters search no more than one.
#[derive(Clone, Debug)]
pub struct Pace(Arc<Mutex<Instant>>);

impl Default for Pace {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Pace {
    /// Nothing is searched any more.
    #[cfg(test)]
    pub fn at_rest() -> Self {
        let pace = Self::default();
        *pace.due() += Duration::from_secs(86_400);
        pace
    }

    fn due(&self) -> MutexGuard<'_, Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When Redis was last searched, and what was told of what was found.
#[derive(Default)]
pub struct Sweeps {
    last: Last,
    ahead: BTreeSet<Window>,
}

impl Sweeps {
    /// Whether it is time for another search.
    pub fn is_due(&self, every: Duration, pace: &Pace) -> bool {
        self.last.is_over(every) && Instant::now() >= *pace.due()
    }

    /// A search has ended, which took so long.
    pub fn done(&mut self, took: Duration, pace: &Pace) {
        self.last.is_now();
        *pace.due() = Instant::now() + took * REST;
    }

    /// Those of the windows that have not begun of which nothing was told yet.
    pub fn untold(&mut self, ahead: Vec<Window>) -> Vec<Window> {
        let before = std::mem::replace(&mut self.ahead, ahead.iter().copied().collect());
        ahead.into_iter().filter(|window| !before.contains(window)).collect()
    }
}
