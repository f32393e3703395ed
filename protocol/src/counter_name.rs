//! Named counters: an application may count several things, each by a name.

use std::fmt;
use std::str::FromStr;

use crate::keys::is_name;

/// The most named counters of a namespace. What a reporter does for each, and what it tells of each, is bounded by that.
pub const MAX_COUNTERS: u64 = 100;

/// For how long a counter that nobody adds to is still reported, in seconds: nine days. Then it is forgotten, until somebody adds to it again. Its last
/// window may end a day after its last registration and its reports are kept for a week after that, so that no report is forgotten before its time.
pub const UNUSED_SECONDS: u64 = 9 * 86_400;

/// The name of a counter beside the one of its namespace that has none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CounterName(String);

/// Why a text is no [`CounterName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("counter {0:?} is not 1 to 64 of the characters a-z A-Z 0-9 . _ -")]
pub struct InvalidCounterName(String);

impl CounterName {
    /// The name as text.
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
    fn what_is_a_name() {
        for bad in ["", " ", "a b", "a/b", "a:b", "{a}", "ä", "a*", &"x".repeat(65)] {
            let error = bad.parse::<CounterName>().expect_err(bad);
            assert!(error.to_string().contains("1 to 64"), "{error}");
        }
        for good in ["logins", "A_1.2-3", &"x".repeat(64)] {
            assert_eq!(good.parse::<CounterName>().expect("valid").to_string(), good);
        }
    }
}
