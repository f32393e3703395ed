//! Named counters are registered in Redis, so that the reporter knows of them.

use crate::answer::Limit;

/// What [`TELL_COUNTER`](verve_protocol::scripts::TELL_COUNTER) has said: whether there may be no more counters.
#[must_use]
pub fn no_more_counters(said: &str) -> Option<Limit> {
    (said == "full").then_some(Limit::Counters)
}
