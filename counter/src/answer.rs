//! What came of an id.

use verve_protocol::keys::stats;

/// What became of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Recorded, for the first time in its window.
    New,
    /// Recorded in its window before.
    Duplicate,
    /// Redis is away: recorded on disk, and brought to Redis later.
    Spooled,
}

impl Outcome {
    /// The value of the header `verve-outcome`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Duplicate => "duplicate",
            Self::Spooled => "spooled",
        }
    }
}

/// What a request was beyond: something that is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `window_limit`: the ids of a window.
    Window,
    /// `endpoint_limit`: the callback jobs of an endpoint in a window.
    Endpoint,
    /// [`MAX_COUNTERS`](verve_protocol::counter_name::MAX_COUNTERS): the named counters of a namespace.
    Counters,
}

impl Limit {
    /// The value of the header `verve-error`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Window => "window-limit",
            Self::Endpoint => "endpoint-limit",
            Self::Counters => "counter-limit",
        }
    }
}

/// What came of an id, and of the callback that was asked for with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The id is recorded, and so is the callback: whatever fails from now on, it is counted.
    Recorded(Outcome),
    /// Not recorded, since this would be beyond a limit.
    Limited(Limit),
    /// Not recorded: Redis is away, and there is no spool, or no room in it.
    Unavailable,
}

impl Answer {
    /// The field of the statistics that counts it.
    #[must_use]
    pub const fn statistic(self) -> &'static str {
        match self {
            Self::Recorded(Outcome::New) => stats::NEW,
            Self::Recorded(Outcome::Duplicate) => stats::DUPLICATE,
            Self::Recorded(Outcome::Spooled) => stats::SPOOLED,
            Self::Limited(_) => stats::LIMITED,
            Self::Unavailable => stats::FAILED,
        }
    }
}
