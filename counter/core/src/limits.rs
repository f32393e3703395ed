//! The limits that the operator may set.
//!
//! Scripts check them in Redis, where the state is known.

use verve_protocol::Window;

use crate::answer::{Answer, Limit, NotCounted, Outcome};

/// Returns the answer of an id that a script has added.
///
/// The script answers 0 if the id is new, 1 if it was there, and 2 if there was no room.
#[must_use]
pub const fn added(number: i64) -> Option<Answer> {
    match number {
        0 => Some(Ok(Outcome::New)),
        1 => Some(Ok(Outcome::Duplicate)),
        2 => Some(Err(NotCounted::Limited(Limit::Window))),
        _ => None,
    }
}

/// Returns how long an endpoint's number of jobs in a window is kept, in seconds.
///
/// After that time no request belongs to the window any more.
#[must_use]
pub const fn endpoints_seconds(window: Window) -> u64 {
    window.length().seconds() + 60
}
