//! How long to wait before a callback's next attempt.

use std::time::Duration;

/// The longest wait that doubling leads to.
const LONGEST: Duration = Duration::from_secs(600);
/// The longest wait that an endpoint can ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(3600);

/// Exponential backoff with jitter.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// Before the second attempt.
    pub first: Duration,
}

impl Backoff {
    /// The wait after the `attempt`th attempt (from 1): doubled with each, half of it random, so that jobs that failed together
    /// do not come back together. Where the endpoint asked for a wait, at least that, up to an hour.
    pub fn wait(self, attempt: u32, asked: Option<Duration>) -> Duration {
        let doublings = attempt.saturating_sub(1).min(20);
        let full = self.first.saturating_mul(1 << doublings).min(LONGEST);
        let jittered = full.mul_f64(0.5 + fastrand::f64() / 2.0);
        jittered.max(asked.unwrap_or_default().min(LONGEST_ASKED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_ten_minutes() {
        let backoff = Backoff {
            first: Duration::from_secs(1),
        };
        for (attempt, seconds) in [(1, 1), (2, 2), (5, 16), (10, 512), (11, 600), (100, 600)] {
            for _ in 0..100 {
                let wait = backoff.wait(attempt, None).as_secs_f64();
                assert!(
                    (f64::from(seconds) / 2.0..=f64::from(seconds)).contains(&wait),
                    "{attempt}: {wait}"
                );
            }
        }
    }

    #[test]
    fn what_the_endpoint_asks_for_is_kept_up_to_an_hour() {
        let backoff = Backoff {
            first: Duration::from_secs(1),
        };
        assert_eq!(backoff.wait(1, Some(Duration::from_secs(30))), Duration::from_secs(30));
        assert_eq!(
            backoff.wait(1, Some(Duration::from_secs(90_000))),
            Duration::from_secs(3600)
        );
        assert!(backoff.wait(10, Some(Duration::from_secs(1))) > Duration::from_secs(200));
    }
}
