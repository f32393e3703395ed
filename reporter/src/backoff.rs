//! Exponential backoff with jitter: how long to wait before a retry.

use std::time::Duration;

/// Waits that double up to a longest one.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// The wait before the second attempt.
    pub first: Duration,
    /// The longest wait, at which doubling stops.
    pub longest: Duration,
}

impl Backoff {
    /// Returns the wait after the `attempt`th attempt, counted from 1.
    /// It doubles with each attempt. Half of it is random, so that clients that failed together do
    /// not retry together.
    pub fn wait(self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(20);
        let full = self.first.saturating_mul(1 << doublings).min(self.longest);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// The pauses between attempts that are repeated until one works.
/// An example is connecting to Redis. The pauses are short at first, and never so long that a
/// dependency which is reachable again stays unused for long.
#[derive(Debug, Default)]
pub struct Retry {
    failures: u32,
}

impl Retry {
    const BACKOFF: Backoff = Backoff {
        first: Duration::from_millis(250),
        longest: Duration::from_secs(2),
    };

    /// Notes a failure, and returns the pause before the next attempt.
    pub fn pause(&mut self) -> Duration {
        self.failures += 1;
        Self::BACKOFF.wait(self.failures)
    }

    /// Notes a success: the next failure counts as the first again.
    pub fn worked(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_about(wait: Duration, full: Duration) {
        assert!((full / 2..=full).contains(&wait), "{wait:?} of {full:?}");
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let backoff = Backoff {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(600),
        };
        for (attempt, seconds) in [(1, 1), (2, 2), (5, 16), (10, 512), (11, 600), (100, 600)] {
            let waits: Vec<Duration> = (0..100).map(|_| backoff.wait(attempt)).collect();
            let full = Duration::from_secs(seconds);
            waits.iter().for_each(|wait| assert_about(*wait, full));
            assert!(waits.iter().any(|wait| *wait != waits[0]), "{attempt}: no jitter");
        }
    }

    #[test]
    fn a_retry_is_slower_each_time_until_it_works() {
        let mut retry = Retry::default();
        for full_ms in [250, 500, 1000, 2000, 2000, 2000] {
            assert_about(retry.pause(), Duration::from_millis(full_ms));
        }
        retry.worked();
        assert_about(retry.pause(), Duration::from_millis(250));
    }
}
