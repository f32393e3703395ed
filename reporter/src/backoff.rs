//! Exponential backoff with jitter: how long to wait before something that failed is tried again.

use std::time::Duration;

/// Waits that double, up to a longest one.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// Before the second attempt.
    pub first: Duration,
    /// The longest wait that doubling leads to.
    pub longest: Duration,
}

impl Backoff {
    /// The wait after the `attempt`th attempt (from 1): doubled with each, half of it random, so that those who failed together do
    /// not come back together.
    pub fn wait(self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(20);
        let full = self.first.saturating_mul(1 << doublings).min(self.longest);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// The pauses of what is tried until it works, such as reaching Redis: short at first, and never so long that a dependency which is
/// back would be left waiting.
#[derive(Debug, Default)]
pub struct Retry {
    failures: u32,
}

impl Retry {
    const BACKOFF: Backoff = Backoff {
        first: Duration::from_millis(250),
        longest: Duration::from_secs(2),
    };

    /// It failed: the pause before it is tried again.
    pub fn pause(&mut self) -> Duration {
        self.failures += 1;
        Self::BACKOFF.wait(self.failures)
    }

    /// It worked: the next failure is the first again.
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
