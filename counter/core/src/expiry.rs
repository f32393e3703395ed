//! The expiry of sets of ids, by the end of their window and by Redis' own clock.
//!
//! It does not follow the clock of the edge host, which may be wrong.

use verve_protocol::keys::ids_parts;

/// Returns the end of the window whose ids are under this key, in Unix seconds.
///
/// For a key of another kind it returns 0, which has the effect of the current time.
#[must_use]
pub fn end_of(key: &str) -> u64 {
    ids_parts(key).map_or(0, |(_, length, start, _)| start.saturating_add(length))
}

#[cfg(test)]
mod tests {
    use verve_protocol::keys::{AHEAD_SECONDS, INDEX_SECONDS, UNREPORTED_SECONDS};

    use verve_protocol::scripts::KEEP;

    use super::*;

    #[test]
    fn the_script_has_the_periods_of_the_protocol() {
        // The scripts of the build for WASI 0.2 have the same number.
        assert_eq!(INDEX_SECONDS, 777_600);
        assert!(KEEP.contains(&format!("now + {AHEAD_SECONDS}) + {UNREPORTED_SECONDS}\n")));
    }

    #[test]
    fn a_key_contains_the_end_of_its_window() {
        assert_eq!(end_of("verve:ids:86400:0:7"), 86_400);
        assert_eq!(end_of("{verve}:stats:60:0"), 0);
    }
}
