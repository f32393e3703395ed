//! What is said on standard error: no more than a line a second of each kind, since a Redis that is down is not news with each request.

use std::cell::Cell;

use crate::config::Log;
use crate::ports::Clock;

/// What an instance says.
pub struct Logger<C: Clock> {
    clock: C,
    level: Log,
    /// When an error was last said, in Unix seconds.
    last_error: Cell<u64>,
    /// When it was last said that something was not recorded, which is worse.
    last_refusal: Cell<u64>,
}

impl<C: Clock> Logger<C> {
    /// One that says as much as `level` has it say.
    pub fn new(clock: C, level: Log) -> Self {
        Self {
            clock,
            level,
            last_error: Cell::default(),
            last_refusal: Cell::default(),
        }
    }

    /// Says what went wrong.
    pub fn error(&self, text: &str) {
        self.say(&self.last_error, text);
    }

    /// Says what was not recorded.
    pub fn refusal(&self, text: &str) {
        self.say(&self.last_refusal, text);
    }

    fn say(&self, last: &Cell<u64>, text: &str) {
        let now = self.clock.now_ms() / 1000;
        if self.level >= Log::Error && last.replace(now) != now {
            eprintln!("verve: {text}");
        }
    }
}
