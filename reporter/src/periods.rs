//! How long what goes by the clock takes.

use std::time::Duration;

/// The periods that are chosen by each other, and that tests shorten all at once (`--divide-periods`).
#[derive(Clone, Copy, Debug)]
pub struct Periods {
    /// How long a lease lasts unless it is renewed. With [`Self::try_lease`] it bounds the time of a takeover.
    pub lease: Duration,
    /// How long a call to an endpoint may take.
    pub call: Duration,
    /// How long Kafka may take to acknowledge a record.
    pub delivery: Duration,
    /// How often Redis is searched for ids that nobody expects and reports that need not be kept.
    pub sweep: Duration,
    /// For how long what was logged has to be absent before it is over: what comes and goes is said once too. Whatever is refused is
    /// tried again more often than that.
    pub quiet: Duration,
}

impl Default for Periods {
    fn default() -> Self {
        Self::divided(1)
    }
}

impl Periods {
    /// All of them, so many times as short.
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

    /// How often a lease is renewed: two renewals may fail.
    pub fn renew_lease(self) -> Duration {
        self.lease / 3
    }

    /// How often others try to get it.
    pub fn try_lease(self) -> Duration {
        self.lease / 6
    }

    /// From when on a job that was taken and not settled is another's to take: long after its call has ended.
    pub fn claim(self) -> Duration {
        self.call * 3
    }
}
