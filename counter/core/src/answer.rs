//! The outcome of an id.

use thiserror::Error;
use verve_protocol::WindowLengths;
use verve_protocol::keys::stats;

/// The outcome of an id that is counted.
///
/// Such an id is counted once in its window, even if the instance, the host, Redis or the reporter
/// fails afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Recorded for the first time in its window.
    New,
    /// Already recorded in its window.
    Duplicate,
    /// Redis is unreachable: recorded on disk, and drained into Redis later.
    Spooled,
}

impl Outcome {
    /// Returns the value of the header `verve-outcome`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Duplicate => "duplicate",
            Self::Spooled => "spooled",
        }
    }
}

/// The limit that an id exceeds, so that it is not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Limit {
    /// `window_limit`: the ids of a window.
    #[error("its window is full (window_limit)")]
    Window,
    /// `endpoint_limit`: the callback jobs of an endpoint in a window.
    #[error("its endpoint has reached its callback jobs for the window (endpoint_limit)")]
    Endpoint,
    /// `counter_limit`: the named counters of a namespace.
    #[error("its namespace already has as many named counters as it may have (counter_limit)")]
    Counters,
}

impl Limit {
    /// Returns the value of the header `verve-error`.
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
    /// The id would exceed a limit. Ids that the window already has can still be added.
    #[error("{0}")]
    Limited(Limit),
    /// Redis is unreachable or refuses, and there is no spool or no room in it.
    ///
    /// The log contains the reason. The client may add the id again. At worst, the id was recorded
    /// nevertheless, and is then a duplicate.
    #[error("Redis is unreachable or refuses commands, and the spool is missing or full")]
    Unavailable,
}

/// The outcome of an id and of the callback that was requested with it.
pub type Answer = Result<Outcome, NotCounted>;

/// The answers about one id in its windows, first in the main one.
///
/// What follows the answer of the longest length has no meaning.
pub type Answers = [Answer; WindowLengths::MOST];

/// Returns the same answer for the windows of all lengths.
pub const fn in_all(answer: Answer) -> Answers {
    [answer; WindowLengths::MOST]
}

/// Returns the field of the statistics that counts this answer.
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

/// Parses the answer of a script; `None` if it is not an answer.
#[must_use]
pub fn parse_answer(text: &str) -> Option<Answer> {
    let outcomes = [Outcome::New, Outcome::Duplicate].map(|outcome| (outcome.as_str(), Ok(outcome)));
    let limits = [Limit::Window, Limit::Endpoint].map(|limit| (limit.as_str(), Err(NotCounted::Limited(limit))));
    let mut known = outcomes.into_iter().chain(limits);
    known.find(|(name, _)| *name == text).map(|(_, answer)| answer)
}
