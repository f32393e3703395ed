//! What the operator may limit: scripts that check it where it is known, in Redis.

use verve_protocol::Window;

use crate::answer::{Answer, Limit, NotCounted, Outcome};

/// What came of an id that a script has added: it says 0 if the id is new, 1 if it was there, 2 if there was no room.
#[must_use]
pub const fn added(said: i64) -> Option<Answer> {
    match said {
        0 => Some(Ok(Outcome::New)),
        1 => Some(Ok(Outcome::Duplicate)),
        2 => Some(Err(NotCounted::Limited(Limit::Window))),
        _ => None,
    }
}

/// How long it is known how many jobs an endpoint has had in a window: until no request belongs to it any more.
#[must_use]
pub const fn endpoints_seconds(window: Window) -> u64 {
    window.length().seconds() + 60
}
