//! Partitions: one window's ids in several sets, so that a cluster spreads them over its nodes.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

/// How many sets a window's ids are in: 1 to 256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partitions(NonZeroU16);

/// One of a window's [`Partitions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Partition {
    /// The only one; its set is named by the window alone.
    Whole,
    /// One of several, from 0 on.
    Part(u16),
}

/// Why something is no number of [`Partitions`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a number of partitions from 1 to 256")]
pub struct InvalidPartitions(String);

impl Partitions {
    /// The most there may be: a report asks for as many sizes.
    pub const MOST: u16 = 256;

    /// So many.
    ///
    /// # Errors
    /// When the count is not from 1 to 256.
    pub fn try_new(count: u16) -> Result<Self, InvalidPartitions> {
        let valid = NonZeroU16::new(count).filter(|count| count.get() <= Self::MOST);
        valid.map(Self).ok_or_else(|| InvalidPartitions(count.to_string()))
    }

    /// How many.
    #[must_use]
    pub const fn count(self) -> u16 {
        self.0.get()
    }

    /// The one with this number.
    pub(crate) const fn of_number(self, number: u16) -> Partition {
        match self.count() {
            1 => Partition::Whole,
            _ => Partition::Part(number),
        }
    }

    /// All of them.
    pub fn all(self) -> impl Iterator<Item = Partition> + Clone {
        (0..self.count()).map(move |number| self.of_number(number))
    }

    /// All that a window may have ids in: where there are several, also the set that was the only one before.
    pub fn with_former(self) -> impl Iterator<Item = Partition> + Clone {
        let former = (self.count() > 1).then_some(Partition::Whole);
        former.into_iter().chain(self.all())
    }
}

impl Partition {
    /// Its number among the others; 0 if there are none.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Whole => 0,
            Self::Part(number) => number,
        }
    }
}

/// One.
impl Default for Partitions {
    fn default() -> Self {
        Self(NonZeroU16::MIN)
    }
}

impl FromStr for Partitions {
    type Err = InvalidPartitions;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The standard parser takes just what we take, and a leading `+` besides.
        let count = text.parse().ok().filter(|_| !text.starts_with('+'));
        let partitions = count.and_then(|count| Self::try_new(count).ok());
        partitions.ok_or_else(|| InvalidPartitions(text.to_owned()))
    }
}

impl fmt::Display for Partitions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_range_are_refused() {
        for bad in ["", "0", "257", "+2", "-1", "2.0", "many", "65537"] {
            let error = bad.parse::<Partitions>().expect_err(bad);
            assert!(error.to_string().contains("from 1 to 256"), "{error}");
        }
        for good in ["1", "256"] {
            assert_eq!(good.parse::<Partitions>().expect(good).to_string(), good);
        }
    }

    #[test]
    fn one_partition_is_the_whole_window() {
        let one = Partitions::default();
        assert!(one.all().eq([Partition::Whole]) && one.with_former().eq([Partition::Whole]));
        let two = Partitions::try_new(2).expect("valid");
        assert!(two.all().eq([Partition::Part(0), Partition::Part(1)]));
        assert!(
            two.with_former()
                .eq([Partition::Whole, Partition::Part(0), Partition::Part(1)])
        );
    }
}
