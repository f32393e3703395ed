//! The log on standard error: at most one line per second of each kind.
//!
//! Otherwise an unreachable Redis would cause a line for each request.

use std::cell::Cell;

use crate::config::Log;
use crate::ports::Clock;

/// The log of an instance.
pub struct Logger<C: Clock> {
    clock: C,
    level: Log,
    /// When an error was last logged, in Unix seconds.
    last_error: Cell<u64>,
    /// When it was last logged that something was not recorded, which is worse.
    last_refusal: Cell<u64>,
}

impl<C: Clock> Logger<C> {
    /// Returns a log with this level.
    pub fn new(clock: C, level: Log) -> Self {
        Self {
            clock,
            level,
            last_error: Cell::default(),
            last_refusal: Cell::default(),
        }
    }

    /// Logs an error.
    pub fn error(&self, text: &str) {
        self.log(&self.last_error, text);
    }

    /// Logs what was not recorded.
    pub fn refusal(&self, text: &str) {
        self.log(&self.last_refusal, text);
    }

    fn log(&self, last: &Cell<u64>, text: &str) {
        let now = self.clock.now_ms() / 1000;
        if self.level >= Log::Error && last.replace(now) != now {
            eprintln!("verve: {text}");
        }
    }
}
