//! The registration of named counters in Redis, for the reporter.

use crate::answer::Limit;

/// Parses the answer of the script that registers a counter.
///
/// It returns a limit if [`REGISTER_COUNTER`](verve_protocol::scripts::REGISTER_COUNTER) answers
/// that there may be no more counters.
#[must_use]
pub fn no_more_counters(answer: &str) -> Option<Limit> {
    (answer == "full").then_some(Limit::Counters)
}
