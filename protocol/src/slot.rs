//! The slots of a Redis Cluster, and the slot of a key.

use crc::{CRC_16_XMODEM, Crc};

/// The number of slots in a cluster.
pub const SLOTS: u16 = 16_384;

const CRC16: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);

/// Returns the slot of a key: `CRC16(key) mod 16384`.
///
/// Only the hash tag is hashed, if the key has one. The hash tag is the text between the first `{`
/// and the next `}`, unless that is empty (Redis Cluster specification, "Key distribution model"
/// and "Hash tags").
#[must_use]
pub fn slot(key: &str) -> u16 {
    CRC16.checksum(hashed(key).as_bytes()) % SLOTS
}

fn hashed(key: &str) -> &str {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
    tag.map(|(tag, _)| tag).filter(|tag| !tag.is_empty()).unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Keys, Partition, WindowLength};

    /// The examples of the specification.
    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(CRC16.checksum(b"123456789"), 0x31c3);
        assert_eq!(slot("123456789"), 0x31c3 % SLOTS);
        assert_eq!(slot("foo"), 12_182);
        assert_eq!(slot("bar"), 5_061);
        for (key, tag) in [
            ("{user1000}.following", "user1000"),
            ("{user1000}.followers", "user1000"),
            ("foo{}{bar}", "foo{}{bar}"),
            ("foo{{bar}}zap", "{bar"),
            ("foo{bar}{zap}", "bar"),
            ("foo{bar", "foo{bar"),
            ("", ""),
        ] {
            assert_eq!(hashed(key), tag, "{key}");
        }
    }

    #[test]
    fn all_keys_of_a_script_are_in_one_slot() {
        let keys = Keys::new("verve".parse().expect("valid"));
        let length = WindowLength::try_new(60).expect("valid");
        let window = length.window_at_ms(1_795_383_012_345);
        let named = keys.named("logins".parse().expect("valid"));
        let together = [
            named.windows(length),
            named.reports(length),
            named.stats(window),
            keys.lease(length),
            keys.windows(length),
            keys.windows_late(length),
            keys.reports_open(length),
            keys.reports_progress(length),
            keys.counters(),
            keys.reports(length),
            keys.reports_pending(length),
            keys.reports_from(length),
            keys.callbacks(),
            keys.callbacks_retry(),
            keys.callbacks_dead(),
            keys.stats(window),
            keys.endpoints(window),
            keys.spools(),
            keys.format(),
            keys.spooled_batch("1f"),
        ];
        assert!(together.iter().all(|key| slot(key) == slot("verve")), "{together:?}");
        for partition in [Partition::Whole, Partition::Part(7)] {
            let ids = slot(&keys.ids(window, partition));
            for key in [
                keys.closed(window, partition),
                keys.closing(window, partition),
                keys.late(window, partition),
            ] {
                assert_eq!(slot(&key), ids, "{key}");
            }
        }
    }

    #[test]
    fn partitions_are_spread_over_the_slots() {
        let keys = Keys::new("verve".parse().expect("valid"));
        let window = WindowLength::try_new(60)
            .expect("valid")
            .window_at_ms(1_795_383_012_345);
        let mut thirds = [0; 3];
        for number in 0..64 {
            let slot = slot(&keys.ids(window, Partition::Part(number)));
            thirds[usize::from(slot) * 3 / usize::from(SLOTS)] += 1;
        }
        assert!(thirds.iter().all(|sets| *sets >= 10), "{thirds:?}");
    }
}
