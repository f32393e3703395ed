//! Faults put into the scripts, the spool's SQL and the broker: a simulation that does not find them would not find those of anybody else.

/// A fault that is put in.
#[derive(Debug)]
pub struct Mutation {
    /// Its name.
    pub name: &'static str,
    /// Where it is put in.
    pub into: Into,
}

/// Where a fault is put in.
#[derive(Debug)]
pub enum Into {
    /// This text of a script, which is in no other one, or of a statement of SQL, becomes another one.
    Text(&'static str, &'static str),
    /// The broker takes records from producers that are not the latest.
    NoFence,
}

impl Mutation {
    /// A script or a statement with the fault in it, if it is there that it is put in.
    #[must_use]
    pub fn apply(&self, text: &str) -> Option<String> {
        match self.into {
            Into::Text(find, replace) if text.contains(find) => Some(text.replace(find, replace)),
            _ => None,
        }
    }
}

const fn text(name: &'static str, find: &'static str, replace: &'static str) -> Mutation {
    Mutation {
        name,
        into: Into::Text(find, replace),
    }
}

/// All of them.
pub const MUTATIONS: &[Mutation] = &[
    Mutation {
        name: "the broker has no fence",
        into: Into::NoFence,
    },
    text(
        "who prepares need not hold the lease",
        "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end\nredis.call('HDEL', KEYS[2], '')\nredis.call('HSET', KEYS[2], unpack(ARGV, 3))",
        "redis.call('HSET', KEYS[2], unpack(ARGV, 3))",
    ),
    text(
        "who records need not hold the lease",
        "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end\nredis.call('HDEL', KEYS[3], '')",
        "",
    ),
    text(
        "a lease is given to two",
        "if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end\nredis.call('UNLINK', KEYS[1])",
        "",
    ),
    text(
        "a closed window is not told to be",
        "  redis.call('SET', closing, 1, 'EX', ARGV[1])\n",
        "",
    ),
    text(
        "a window is closed and its ids forgotten",
        "    redis.call('RENAME', ids, closed)",
        "    redis.call('UNLINK', ids)",
    ),
    text(
        "what comes late takes the place of what came late before",
        "redis.call('SUNIONSTORE', late, late, ids)",
        "redis.call('SUNIONSTORE', late, ids)",
    ),
    text(
        "what comes late is thrown away",
        "redis.call('SUNIONSTORE', late, late, ids)",
        "",
    ),
    text(
        "ids expire with their window",
        "local at = math.min(math.max(tonumber(ends), now), now + 604800) + 86400",
        "local at = math.max(tonumber(ends), now) + 1",
    ),
    text(
        "a batch runs as often as it is sent",
        "if not redis.call('SET', KEYS[1], 1, 'NX', 'EX', ARGV[1]) then",
        "if false then",
    ),
    text(
        "another attempt is counted as the first one",
        "said.again",
        "said.never",
    ),
    text(
        "what was there before is new",
        "answers[i - first + 1] = type(added) == 'number' and 1 - added",
        "answers[i - first + 1] = 0",
    ),
    text(
        "the newest report is not noted",
        "redis.call('HSET', KEYS[6], 'newest', newest)",
        "",
    ),
    text(
        "what is pending is forgotten when it is recorded of another window",
        "  redis.call('HDEL', KEYS[3], field)",
        "  redis.call('DEL', KEYS[3])",
    ),
    text(
        "windows are forgotten though they have ids again",
        "if score and tonumber(score) == tonumber(ARGV[i + 1]) then redis.call('ZREM', KEYS[1], ARGV[i]) end",
        "redis.call('ZREM', KEYS[1], ARGV[i])",
    ),
    text(
        "a spool is drained with what was put there meanwhile",
        "DELETE FROM ids WHERE number IN",
        "DELETE FROM ids WHERE 1 OR number IN",
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_has_a_name_of_its_own() {
        let names: BTreeSet<&str> = MUTATIONS.iter().map(|mutation| mutation.name).collect();
        assert_eq!(names.len(), MUTATIONS.len());
    }
}
