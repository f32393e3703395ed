//! Clocks: Redis' clock and this machine's.
//!
//! Decisions about windows use Redis' clock, which all replicas share, and never this machine's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Returns this machine's wall clock, in milliseconds since the Unix epoch.
/// It is 0 for a clock before the epoch. It is for times that others check by their own clocks (the
/// time in a signature), and for comparison with Redis' clock.
pub fn machine_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    millis(since)
}

/// Returns a duration in whole milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Redis' clock as it was read, advanced by this machine's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct RedisClock {
    read_ms: u64,
    /// When it was read. `None` for a stopped clock, in tests.
    read: Option<Instant>,
}

impl RedisClock {
    /// Creates a clock that has just answered `read_ms`.
    /// This is the time in milliseconds since the Unix epoch.
    pub fn read_now(read_ms: u64) -> Self {
        Self {
            read_ms,
            read: Some(Instant::now()),
        }
    }

    /// Creates a stopped clock.
    #[cfg(test)]
    pub const fn stopped(read_ms: u64) -> Self {
        Self { read_ms, read: None }
    }

    /// Returns the time, in milliseconds since the Unix epoch.
    /// It is behind by at most the time that the answer took, and never ahead.
    pub fn now_ms(self) -> u64 {
        let since = millis(self.age());
        self.read_ms.saturating_add(since)
    }

    /// Returns how long ago it was read.
    pub fn age(self) -> Duration {
        self.read.map_or(Duration::ZERO, |read| read.elapsed())
    }
}
