//! Ids: their values, their spelling, and their partitions.

use std::fmt;
use std::str::FromStr;

use crate::partitions::{Partition, Partitions};

/// An id: a signed 64-bit integer.
///
/// Its value matters, not its spelling: `007` and `7` are the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub i64);

/// The error for a text that is not an [`Id`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an id is a decimal integer from -9223372036854775808 to 9223372036854775807, without sign +, blanks or separators"
)]
pub struct InvalidId;

impl FromStr for Id {
    type Err = InvalidId;

    /// Parses ASCII digits with an optional leading `-`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The standard parser accepts the same texts, and also a leading `+`.
        if text.starts_with('+') {
            return Err(InvalidId);
        }
        text.parse().map(Self).map_err(|_| InvalidId)
    }
}

/// Writes the canonical spelling, which is also the member of the Redis set.
impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Id {
    /// Returns the partition that contains this id: `splitmix64(id) mod partitions`.
    ///
    /// The hash is the output function of SplitMix64 (Steele, Lea and Flood, "Fast splittable
    /// pseudorandom number generators", OOPSLA 2014), with the two's complement of the id as its
    /// state. It is part of the contract: with another hash, an id would be counted twice.
    #[must_use]
    pub fn partition(self, partitions: Partitions) -> Partition {
        let number = splitmix64(self.0.cast_unsigned()) % u64::from(partitions.count());
        partitions.of_number(number as u16)
    }
}

/// Computes one step of SplitMix64 from the state `x`.
const fn splitmix64(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spellings_that_are_ids() {
        for (text, id) in [
            ("0", 0),
            ("-0", 0),
            ("007", 7),
            ("-007", -7),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
            ("000000000000000000000000000000000000009223372036854775807", i64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(Id(id)), "{text}");
        }
    }

    #[test]
    fn spellings_that_are_not() {
        for text in [
            "",
            "-",
            "+",
            "+7",
            "--7",
            "-+7",
            " 7",
            "7 ",
            "7\n",
            "1_000",
            "1,000",
            "1.0",
            "1e3",
            "0x7",
            "seven",
            "9223372036854775808",
            "-9223372036854775809",
            "٧",
            "\u{ff17}",
            "−7",
            "\u{0}7",
        ] {
            assert_eq!(text.parse::<Id>(), Err(InvalidId), "{text:?}");
        }
    }

    #[test]
    fn the_hash_is_splitmix64() {
        // The first outputs of the reference generator with the seed 0, as published with it.
        assert_eq!(splitmix64(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(splitmix64(0x9e37_79b9_7f4a_7c15), 0x6e78_9e6a_a1b9_65f4);
        assert_eq!(splitmix64(0x3c6e_f372_fe94_f82a), 0x06c4_5d18_8009_454f);
    }

    #[test]
    fn partitions_are_pinned() {
        // If a line here changes, ids are counted twice on every upgrade.
        for (id, numbers) in VECTORS {
            for (count, number) in [2, 3, 4, 16].into_iter().zip(numbers) {
                let partition = Id(id).partition(of(count));
                assert_eq!(partition.number(), number, "id {id} of {count}");
            }
            assert_eq!(Id(id).partition(Partitions::default()).number(), 0);
        }
    }

    const VECTORS: [(i64, [u16; 4]); 8] = [
        (0, [1, 1, 3, 15]),
        (1, [1, 2, 1, 1]),
        (-1, [0, 2, 0, 0]),
        (7, [1, 0, 3, 7]),
        (42, [1, 1, 1, 5]),
        (1_000_000, [1, 0, 3, 7]),
        (i64::MAX, [1, 0, 3, 7]),
        (i64::MIN, [1, 1, 3, 11]),
    ];

    fn of(count: u16) -> Partitions {
        Partitions::try_new(count).expect("a valid count")
    }

    #[test]
    fn running_numbers_spread_evenly() {
        let mut counts = [0u32; 3];
        for id in 0..30_000 {
            counts[usize::from(Id(id).partition(of(3)).number())] += 1;
        }
        assert!(counts.iter().all(|c| (9_700..10_300).contains(c)), "{counts:?}");
    }

    proptest! {
        #[test]
        fn written_values_are_read_back(id: i64) {
            prop_assert_eq!(Id(id).to_string().parse(), Ok(Id(id)));
        }

        #[test]
        fn any_text_is_read_as_its_number_or_refused(text in "[-+]?[0-9 _]{0,25}|\\PC{0,12}") {
            let plain = text.strip_prefix('-').unwrap_or(&text);
            let digits = !plain.is_empty() && plain.bytes().all(|b| b.is_ascii_digit());
            let number = text.parse::<i128>().ok().and_then(|n| i64::try_from(n).ok()).filter(|_| digits);
            prop_assert_eq!(text.parse::<Id>().ok(), number.map(Id));
        }

        #[test]
        fn a_partition_is_one_of_them(id: i64, count in 1..=256u16) {
            prop_assert!(of(count).all().any(|partition| partition == Id(id).partition(of(count))));
        }
    }
}
