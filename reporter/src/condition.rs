//! What is said once, and not each time it is met.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Something that is worth a line in the log when it begins and when it is over, and not each time it is met.
#[derive(Debug)]
pub struct Condition {
    /// For how long it has to be absent before it is over.
    quiet: Duration,
    /// When it was last met, until it is over.
    met: Mutex<Option<Instant>>,
}

impl Condition {
    /// One that is over once it was absent for so long.
    pub const fn new(quiet: Duration) -> Self {
        Self {
            quiet,
            met: Mutex::new(None),
        }
    }

    /// It was met now. Says whether that is new.
    pub fn met(&self) -> bool {
        self.met_at(Instant::now())
    }

    /// It was not met now. Says whether it is over with that.
    pub fn absent(&self) -> bool {
        self.absent_at(Instant::now())
    }

    fn met_at(&self, now: Instant) -> bool {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        met.replace(now).is_none()
    }

    /// The same at that time.
    pub fn absent_at(&self, now: Instant) -> bool {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        met.take_if(|met| now.duration_since(*met) >= self.quiet).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_when_it_begins_and_when_it_is_over() {
        let condition = Condition::new(Duration::from_secs(10));
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert!(!condition.absent_at(at(0)), "it never was");
        assert!(condition.met_at(at(1)));
        assert!(!condition.met_at(at(2)), "said already");
        assert!(!condition.absent_at(at(3)), "may be met again");
        assert!(!condition.met_at(at(9)));
        assert!(!condition.absent_at(at(18)));
        assert!(condition.absent_at(at(19)));
        assert!(!condition.absent_at(at(40)), "said already");
        assert!(condition.met_at(at(41)), "it began anew");
    }
}
