//! What came of an id.

use thiserror::Error;
use verve_protocol::counter_name::MAX_COUNTERS;
use verve_protocol::keys::stats;

/// What became of an id that is counted. Whatever fails from then on (the instance, the host, Redis, the reporter), it is counted once in
/// its window.
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

/// What an id that is not counted is beyond: something that is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Limit {
    /// `window_limit`: the ids of a window.
    #[error("its window has as many ids as it may have (window_limit)")]
    Window,
    /// `endpoint_limit`: the callback jobs of an endpoint in a window.
    #[error("its endpoint has as many callback jobs in the window as it may have (endpoint_limit)")]
    Endpoint,
    /// [`MAX_COUNTERS`]: the named counters of a namespace.
    #[error("its namespace has as many named counters as it may have ({MAX_COUNTERS})")]
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

/// Why an id is not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotCounted {
    /// This would be beyond a limit. Ids that the window has already can be added still.
    #[error("{0}")]
    Limited(Limit),
    /// Redis is away or refuses, and there is no spool or no room in it; the log says which. The id may be added again: at worst it has been
    /// recorded all the same, and is a duplicate then.
    #[error("Redis is away or refuses, and there is no spool or no room in it")]
    Unavailable,
}

/// What came of an id, and of the callback that was asked for with it.
pub type Answer = Result<Outcome, NotCounted>;

/// The field of the statistics that counts it.
#[must_use]
pub const fn statistic(answer: Answer) -> &'static str {
    match answer {
        Ok(Outcome::New) => stats::NEW,
        Ok(Outcome::Duplicate) => stats::DUPLICATE,
        Ok(Outcome::Spooled) => stats::SPOOLED,
        Err(NotCounted::Limited(_)) => stats::LIMITED,
        Err(NotCounted::Unavailable) => stats::FAILED,
    }
}

/// The answer that a script tells, if it is one.
#[must_use]
pub fn told(said: &str) -> Option<Answer> {
    let outcomes = [Outcome::New, Outcome::Duplicate].map(|outcome| (outcome.as_str(), Ok(outcome)));
    let limits = [Limit::Window, Limit::Endpoint].map(|limit| (limit.as_str(), Err(NotCounted::Limited(limit))));
    let mut known = outcomes.into_iter().chain(limits);
    known.find(|(name, _)| *name == said).map(|(_, answer)| answer)
}
