//! Named counters, with which an application counts several things.

use std::fmt;
use std::str::FromStr;

use crate::keys::is_name;

/// How long an unused counter is known at least, in seconds: nine days.
///
/// The time starts at the last registration of the counter. Afterwards, the counter is forgotten
/// with its reports, until ids are added to it again. Its last window may end a day after its last
/// registration, and its reports are kept for a week after that, so no report is removed too early.
/// A reporter that keeps reports for longer keeps counters for two days more than that.
pub const UNUSED_SECONDS: u64 = 9 * 86_400;

/// The name of a named counter.
///
/// Each namespace also has one unnamed counter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CounterName(String);

/// The error for a text that is not a [`CounterName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("counter {0:?} is not 1 to 64 of the characters a-z A-Z 0-9 . _ -")]
pub struct InvalidCounterName(String);

impl CounterName {
    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CounterName {
    type Err = InvalidCounterName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_name(text, b"._-") {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidCounterName(text.to_owned()))
        }
    }
}

impl fmt::Display for CounterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_and_invalid_names() {
        for bad in ["", " ", "a b", "a/b", "a:b", "{a}", "ä", "a*", &"x".repeat(65)] {
            let error = bad.parse::<CounterName>().expect_err(bad);
            assert!(error.to_string().contains("1 to 64"), "{error}");
        }
        for good in ["logins", "A_1.2-3", &"x".repeat(64)] {
            assert_eq!(good.parse::<CounterName>().expect("valid").to_string(), good);
        }
    }
}
