//! The state of a spool, which the component records in Redis.

use std::fmt;
use std::str::FromStr;

/// How long a spool is remembered after its last update, in seconds: a week.
pub const SPOOL_STATE_SECONDS: u64 = 7 * 86_400;

/// The state of one spool, from its first entry until it is empty again.
///
/// It is a value of the hash [`Keys::spools`](crate::Keys::spools), as text: the three numbers,
/// separated by spaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpoolState {
    /// The number of ids and callback jobs in the spool.
    pub depth: u64,
    /// The number of ids that were drained from it into Redis.
    pub drained: u64,
    /// The time of this record, in Unix seconds, by the edge host's clock.
    pub recorded_s: u64,
}

/// Returns the field with the number of counted ids of the spool `name`.
///
/// The field is beside that of the spool. It contains how many of the drained ids the reporters
/// have already counted.
#[must_use]
pub fn spool_counted(name: &str) -> String {
    format!("{name}:counted")
}

/// The error for a text that is not a [`SpoolState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not three whole numbers with spaces between them")]
pub struct InvalidSpoolState;

impl FromStr for SpoolState {
    type Err = InvalidSpoolState;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut numbers = text.split(' ').map(|number| number.parse::<u64>());
        match [(); 4].map(|()| numbers.next()) {
            [Some(Ok(depth)), Some(Ok(drained)), Some(Ok(recorded_s)), None] => Ok(Self {
                depth,
                drained,
                recorded_s,
            }),
            _ => Err(InvalidSpoolState),
        }
    }
}

impl fmt::Display for SpoolState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.depth, self.drained, self.recorded_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_pinned() {
        let state = SpoolState {
            depth: 3,
            drained: 20,
            recorded_s: 1_795_383_012,
        };
        assert_eq!(state.to_string(), "3 20 1795383012");
        assert_eq!("3 20 1795383012".parse(), Ok(state));
        assert_eq!(spool_counted("00ff"), "00ff:counted");
        for bad in ["", "3", "3 20", "3 20 1 1", "3  20 1", "-3 20 1", "3 20 x"] {
            assert_eq!(bad.parse::<SpoolState>(), Err(InvalidSpoolState), "{bad:?}");
        }
    }
}
