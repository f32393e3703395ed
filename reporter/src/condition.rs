//! Logs a condition once, and not at each occurrence.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A condition that is logged when it begins and ends, not at each occurrence.
#[derive(Debug)]
pub struct Condition {
    /// How long the condition must be absent before it ends.
    quiet: Duration,
    /// The last occurrence, until the condition ends.
    met: Mutex<Option<Instant>>,
}

impl Condition {
    /// Creates a condition that ends after it was absent for this time.
    pub const fn new(quiet: Duration) -> Self {
        Self {
            quiet,
            met: Mutex::new(None),
        }
    }

    /// Records an occurrence now. Returns whether the condition has begun with it.
    pub fn met(&self) -> bool {
        self.met_at(Instant::now())
    }

    /// Records that the condition is absent now. Returns whether it has ended.
    pub fn absent(&self) -> bool {
        self.absent_at(Instant::now())
    }

    fn met_at(&self, now: Instant) -> bool {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        met.replace(now).is_none()
    }

    /// The same as [`Self::absent`], at this time.
    pub fn absent_at(&self, now: Instant) -> bool {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        met.take_if(|met| now.duration_since(*met) >= self.quiet).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_logged_when_it_begins_and_ends() {
        let condition = Condition::new(Duration::from_secs(10));
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert!(!condition.absent_at(at(0)), "it never was");
        assert!(condition.met_at(at(1)));
        assert!(!condition.met_at(at(2)), "logged already");
        assert!(!condition.absent_at(at(3)), "may be met again");
        assert!(!condition.met_at(at(9)));
        assert!(!condition.absent_at(at(18)));
        assert!(condition.absent_at(at(19)));
        assert!(!condition.absent_at(at(40)), "logged already");
        assert!(condition.met_at(at(41)), "it began again");
    }
}
