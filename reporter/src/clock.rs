//! Clocks. What is decided about windows is decided by Redis' clock, which all replicas share, and never by this machine's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// This machine's wall clock, in milliseconds since the Unix epoch; 0 for a clock before it. For what others check by their own clocks (the time in a
/// signature), and for comparing it with Redis'.
pub fn machine_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    millis(since)
}

/// In whole milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Redis' clock, as it was read, and gone on since by the monotonic clock of this machine.
#[derive(Clone, Copy, Debug)]
pub struct RedisClock {
    read_ms: u64,
    /// When; `None` for one that stands still, in tests.
    read: Option<Instant>,
}

impl RedisClock {
    /// The clock that has just answered `read_ms`, in milliseconds since the Unix epoch.
    pub fn read_now(read_ms: u64) -> Self {
        Self {
            read_ms,
            read: Some(Instant::now()),
        }
    }

    /// One that stands still.
    #[cfg(test)]
    pub const fn stopped(read_ms: u64) -> Self {
        Self { read_ms, read: None }
    }

    /// The time, in milliseconds since the Unix epoch. As exact as the answer was fast, and never ahead by that.
    pub fn now_ms(self) -> u64 {
        let since = millis(self.age());
        self.read_ms.saturating_add(since)
    }

    /// How long ago it was read.
    pub fn age(self) -> Duration {
        self.read.map_or(Duration::ZERO, |read| read.elapsed())
    }
}
