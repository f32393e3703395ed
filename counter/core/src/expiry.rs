//! When sets of ids expire: by the end of their window and by Redis' own clock, since the clock of an edge host may be wrong.

use verve_protocol::keys::ids_parts;

/// The Lua function `keep(key, ends, again)` for a script. The key, which has to be there, expires [`UNREPORTED_SECONDS`] after `ends`, in Unix
/// seconds, or after now where that is later; and at most [`AHEAD_SECONDS`] later than it would now, however far ahead `ends` is. A key that
/// has an expiry keeps it. With `again` it gets the later of both, and the replicas are sent that in any case: since Redis 7.2 `WAIT` looks
/// at the last write that its own connection has sent them, and an `SADD` of ids that are there sends nothing.
///
/// [`UNREPORTED_SECONDS`]: verve_protocol::keys::UNREPORTED_SECONDS
/// [`AHEAD_SECONDS`]: verve_protocol::keys::AHEAD_SECONDS
#[macro_export]
macro_rules! keep {
    () => {
        r"
local function keep(key, ends, again)
  local now = tonumber(redis.call('TIME')[1])
  local at = math.min(math.max(tonumber(ends), now), now + 604800) + 86400
  if again then
    return redis.call('EXPIREAT', key, math.max(at, redis.call('EXPIRETIME', key)))
  end
  return redis.call('EXPIREAT', key, at, 'NX')
end"
    };
}
pub use keep;

/// Has a set of ids expire, see the function `keep` in it. Answers 0 if the set is not there or, without `again`, has an expiry.
///
/// KEYS: the set. ARGV: when its window ends, in Unix seconds, and `again` or nothing.
pub const KEEP: &str = concat!(keep!(), "\nreturn keep(KEYS[1], ARGV[1], ARGV[2] ~= '')");

/// When the window ends whose ids are under this key, in Unix seconds; 0, which is as good as now, for a key of another kind.
#[must_use]
pub fn end_of(key: &str) -> u64 {
    ids_parts(key).map_or(0, |(_, length, start, _)| start.saturating_add(length))
}

#[cfg(test)]
mod tests {
    use verve_protocol::keys::{AHEAD_SECONDS, INDEX_SECONDS, UNREPORTED_SECONDS};

    use super::*;

    #[test]
    fn the_script_has_the_periods_of_the_protocol() {
        // As in the scripts of the build for WASI 0.2.
        assert_eq!(INDEX_SECONDS, 777_600);
        assert!(KEEP.contains(&format!("now + {AHEAD_SECONDS}) + {UNREPORTED_SECONDS}\n")));
    }

    #[test]
    fn a_key_says_when_its_window_ends() {
        assert_eq!(end_of("verve:ids:86400:0:7"), 86_400);
        assert_eq!(end_of("{verve}:stats:60:0"), 0);
    }
}
