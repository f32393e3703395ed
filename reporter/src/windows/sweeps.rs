//! When Redis is searched for orphaned ids.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use verve_protocol::Window;

/// When something was last done, so that it is repeated at intervals.
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

/// The pause after a search, in multiples of its duration.
///
/// It exists because a search is load for Redis.
const REST: u32 = 50;

/// The sweep throttle: when Redis may be searched again.
/// All counters of one process share it, so that many counters search no more than one.
#[derive(Clone, Debug)]
pub struct SweepThrottle(Arc<Mutex<Instant>>);

impl Default for SweepThrottle {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl SweepThrottle {
    /// Returns a throttle that permits no search.
    #[cfg(test)]
    pub fn at_rest() -> Self {
        let throttle = Self::default();
        *throttle.due() += Duration::from_secs(86_400);
        throttle
    }

    fn due(&self) -> MutexGuard<'_, Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When Redis was last searched, and which findings were logged.
#[derive(Default)]
pub struct Sweeps {
    last: Last,
    ahead: BTreeSet<Window>,
}

impl Sweeps {
    /// Returns whether another search is due.
    pub fn is_due(&self, every: Duration, throttle: &SweepThrottle) -> bool {
        self.last.is_over(every) && Instant::now() >= *throttle.due()
    }

    /// Notes that a search has ended, and how long it took.
    pub fn done(&mut self, took: Duration, throttle: &SweepThrottle) {
        self.last.is_now();
        *throttle.due() = Instant::now() + took * REST;
    }

    /// Returns those windows that have not begun and were not logged yet.
    pub fn unlogged(&mut self, ahead: Vec<Window>) -> Vec<Window> {
        let before = std::mem::replace(&mut self.ahead, ahead.iter().copied().collect());
        ahead.into_iter().filter(|window| !before.contains(window)).collect()
    }
}
