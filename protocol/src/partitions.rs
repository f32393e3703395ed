//! Partitions: the sets over which the ids of a window are divided.
//!
//! With several partitions, a cluster spreads the ids over its nodes.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

/// The number of sets for the ids of a window: 1 to 256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partitions(NonZeroU16);

/// One of a window's [`Partitions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Partition {
    /// The only partition. Its set has the name of the window, without a number.
    Whole,
    /// One of several partitions, numbered from 0.
    Part(u16),
}

/// The error for a value that is not a number of [`Partitions`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a number of partitions from 1 to 256")]
pub struct InvalidPartitions(String);

impl Partitions {
    /// The maximum number, which bounds how many set sizes are read for each report.
    pub const MOST: u16 = 256;

    /// Creates a number of partitions.
    ///
    /// # Errors
    /// If `count` is not from 1 to 256.
    pub fn try_new(count: u16) -> Result<Self, InvalidPartitions> {
        let valid = NonZeroU16::new(count).filter(|count| count.get() <= Self::MOST);
        valid.map(Self).ok_or_else(|| InvalidPartitions(count.to_string()))
    }

    /// Returns the number of partitions.
    #[must_use]
    pub const fn count(self) -> u16 {
        self.0.get()
    }

    /// Returns the partition with this number.
    pub(crate) const fn of_number(self, number: u16) -> Partition {
        match self.count() {
            1 => Partition::Whole,
            _ => Partition::Part(number),
        }
    }

    /// Returns all partitions.
    pub fn all(self) -> impl Iterator<Item = Partition> + Clone {
        (0..self.count()).map(move |number| self.of_number(number))
    }

    /// Returns all partitions in which a window may have ids.
    ///
    /// If there are several, they include [`Partition::Whole`], the only set before there were
    /// several.
    pub fn with_former(self) -> impl Iterator<Item = Partition> + Clone {
        let former = (self.count() > 1).then_some(Partition::Whole);
        former.into_iter().chain(self.all())
    }
}

impl Partition {
    /// Returns the number of this partition; 0 if it is the only one.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Whole => 0,
            Self::Part(number) => number,
        }
    }
}

/// Returns one partition.
impl Default for Partitions {
    fn default() -> Self {
        Self(NonZeroU16::MIN)
    }
}

impl FromStr for Partitions {
    type Err = InvalidPartitions;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The standard parser accepts the same texts, and also a leading `+`.
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
