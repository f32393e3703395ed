//! The periods of leases, calls and sweeps.

use std::time::Duration;

/// Periods that depend on each other.
///
/// Tests shorten them together (`--divide-periods`).
#[derive(Clone, Copy, Debug)]
pub struct Periods {
    /// How long a lease lasts without renewal.
    ///
    /// With [`Self::try_lease`] it limits the time of a takeover.
    pub lease: Duration,
    /// The timeout of a call to an endpoint.
    pub call: Duration,
    /// The time in which Kafka must acknowledge a record.
    pub delivery: Duration,
    /// How often Redis is searched for orphaned ids and reports to remove.
    pub sweep: Duration,
    /// How long a logged condition must be absent before it ends.
    ///
    /// A condition that comes and goes is therefore also logged once. Refused operations are
    /// retried more often than this.
    pub quiet: Duration,
}

impl Default for Periods {
    fn default() -> Self {
        Self::divided(1)
    }
}

impl Periods {
    /// Returns all periods, divided by this number.
    pub fn divided(divisor: u32) -> Self {
        let seconds = |seconds| Duration::from_secs(seconds) / divisor;
        Self {
            lease: seconds(6),
            call: seconds(10),
            delivery: seconds(6),
            sweep: seconds(5),
            quiet: seconds(10),
        }
    }

    /// Returns how often a lease is renewed: two renewals may fail.
    pub fn renew_lease(self) -> Duration {
        self.lease / 3
    }

    /// Returns how often other replicas try to acquire the lease.
    pub fn try_lease(self) -> Duration {
        self.lease / 6
    }

    /// Returns how long a lease is held before an unreachable Redis ends it.
    ///
    /// If no replica can reach it, the lease changes hands no more often than this.
    pub fn hand_over(self) -> Duration {
        self.lease * 10
    }

    /// Returns the time after which another replica may claim an unsettled job.
    ///
    /// Its call has ended long before.
    pub fn claim(self) -> Duration {
        self.call * 3
    }
}
