//! Faults that are inserted to check that the simulation finds them.
//!
//! They are inserted into the scripts, the spool's SQL, the commands, the broker and the adapter. A
//! simulation that misses them would also miss real faults.

use crate::redis::Answer;

/// A fault that is inserted.
#[derive(Debug)]
pub struct Mutation {
    /// Its name.
    pub name: &'static str,
    /// Where it is inserted.
    pub into: Into,
}

/// Where a fault is inserted, and how.
#[derive(Debug)]
pub enum Into {
    /// Replaces a text by another one.
    ///
    /// The text is in a SQL statement, or in exactly one script.
    Text(&'static str, &'static str),
    /// Answers this command without running it, if one of its words contains this text.
    Ignored(&'static str, &'static str),
    /// The broker accepts records from producers that are not the latest.
    NoFence,
    /// The broker acknowledges records, but does not store them.
    NoCommit,
    /// If a request is given up, the tasks that wait for it are not woken.
    NoWake,
    /// A call to Redis has no time limit.
    NoLimit,
}

impl Mutation {
    /// Returns the script or statement with the fault, if it has the text to replace.
    #[must_use]
    pub fn apply(&self, text: &str) -> Option<String> {
        match self.into {
            Into::Text(find, replace) if text.contains(find) => Some(text.replace(find, replace)),
            _ => None,
        }
    }

    /// Returns the answer to a command, if the fault is that the command does not run.
    #[must_use]
    pub fn ignores(&self, words: &[String]) -> Option<Answer> {
        match self.into {
            Into::Ignored(command, text) if words[0] == command && words.iter().any(|word| word.contains(text)) => {
                Some(match command {
                    "XAUTOCLAIM" => {
                        let none = || Answer::Many(Vec::new());
                        Answer::Many(vec![Answer::Text("0-0".to_owned()), none(), none()])
                    }
                    "WAIT" => Answer::Number(1),
                    _ => Answer::Number(0),
                })
            }
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

const fn switch(name: &'static str, into: Into) -> Mutation {
    Mutation { name, into }
}

/// All mutations.
pub const MUTATIONS: &[Mutation] = &[
    switch("the broker has no fence", Into::NoFence),
    switch("the broker forgets what it has acknowledged", Into::NoCommit),
    switch(
        "a waiter is not woken when the request that works for it is given up",
        Into::NoWake,
    ),
    switch("a command to Redis has no time limit", Into::NoLimit),
    switch("a window is not added to the index", Into::Ignored("ZADD", ":windows:")),
    switch(
        "jobs of a dead replica are not claimed",
        Into::Ignored("XAUTOCLAIM", ""),
    ),
    switch("nothing waits for replicas of Redis", Into::Ignored("WAIT", "")),
    text(
        "WAIT follows no write",
        "return redis.call('EXPIREAT', key, math.max(at, redis.call('EXPIRETIME', key)))",
        "return 1",
    ),
    text(
        "a failed job is removed although the retry set is full",
        "redis.call('ZADD', KEYS[2], time[1]",
        "redis.pcall('ZADD', KEYS[2], time[1]",
    ),
    text(
        "a job is removed from the retry set when it is taken",
        "redis.call('ZADD', KEYS[1], 'XX', now + ARGV[1], job)",
        "redis.call('ZREM', KEYS[1], job)",
    ),
    text("no job is queued with a report", "if n > 0 then", "if false then"),
    text(
        "a batch that failed halfway counts as complete",
        "    redis.call('DEL', KEYS[1])\n    return done",
        "    return done",
    ),
    text(
        "a named counter is not registered",
        "for _, counters in ipairs(KEYS) do redis.call('ZADD', counters, now, ARGV[1]) end",
        "redis.call('ZADD', KEYS[1], now, ARGV[1])",
    ),
    text(
        "a counter that was registered since is retired",
        "if used and tonumber(used) < tonumber(ARGV[3]) and redis.call('ZCARD', KEYS[4]) == 0 then",
        "if used then",
    ),
    text(
        "an instance for one request adds its id for the main window alone",
        "if fields.id and not beyond then\n    outcome = 'duplicate'",
        "if fields.id and not beyond and i == 1 then\n    outcome = 'duplicate'",
    ),
    switch(
        "a counter is not in use until its newest window",
        Into::Ignored("ZADD", ":counters:in-use"),
    ),
    text(
        "ids do not expire",
        "return redis.call('EXPIREAT', key, at, 'NX')",
        "return 0",
    ),
    text("a lease does not end", ", 'PX', ARGV[2])", ")"),
    text(
        "renewing a lease does not require to hold it",
        "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end\nreturn",
        "return",
    ),
    text(
        "releasing a lease does not require to hold it",
        "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end",
        "return redis.call('DEL', KEYS[1])",
    ),
    text(
        "the first window to report is not recorded",
        "redis.call('SET', KEYS[1], ARGV[1])\nreturn ARGV[1]",
        "return ARGV[1]",
    ),
    text(
        "windows with late ids are not recorded",
        "for i = 2, #ARGV do redis.call('ZADD', KEYS[1], ARGV[i], ARGV[i]) end",
        "",
    ),
    text(
        "pending records are not stored",
        "redis.call('HSET', KEYS[2], unpack(ARGV, 3))",
        "",
    ),
    text(
        "a final window stays in the list of open ones",
        "  redis.call('ZREM', KEYS[4], ARGV[i])\n",
        "",
    ),
    text(
        "a per-request instance does not add its window to the index",
        "has_first = redis.call('SCARD', ids) == 1",
        "has_first = false",
    ),
    text(
        "a row of the spool has no ids",
        "INSERT INTO ids (key, ids, count) SELECT ?2, ?3, ?4",
        "INSERT INTO ids (key, ids, count) SELECT ?2, '', ?4",
    ),
    text(
        "a batch is spooled twice",
        "AND NOT EXISTS (SELECT 1 FROM commands WHERE batch = ?2) ",
        "",
    ),
    text(
        "batches that have not run are removed from the spool",
        "DELETE FROM commands WHERE batch IN",
        "DELETE FROM commands WHERE 1 OR batch IN",
    ),
    text(
        "preparing records does not require the lease",
        "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end\nredis.call('HDEL', KEYS[2], '')\nredis.call('HSET', KEYS[2], unpack(ARGV, 3))",
        "redis.call('HSET', KEYS[2], unpack(ARGV, 3))",
    ),
    text(
        "recording reports does not require the lease",
        "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end\nredis.call('HDEL', KEYS[3], '')",
        "",
    ),
    text(
        "two replicas get the lease",
        "if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end\nredis.call('UNLINK', KEYS[1])",
        "",
    ),
    text(
        "a closed window is not marked as closed",
        "  redis.call('SET', closing, 1, 'EX', ARGV[1])\n",
        "",
    ),
    text(
        "closing a window loses its ids",
        "    redis.call('RENAME', ids, closed)",
        "    redis.call('UNLINK', ids)",
    ),
    text(
        "late ids replace earlier late ids",
        "redis.call('SUNIONSTORE', late, late, ids)",
        "redis.call('SUNIONSTORE', late, ids)",
    ),
    text("late ids are dropped", "redis.call('SUNIONSTORE', late, late, ids)", ""),
    text(
        "ids expire with their window",
        "local at = math.min(math.max(tonumber(ends), now), now + 604800) + 86400",
        "local at = math.max(tonumber(ends), now) + 1",
    ),
    text(
        "a batch runs each time it is sent",
        "if not redis.call('SET', KEYS[1], 1, 'NX', 'EX', ARGV[1]) then",
        "if false then",
    ),
    text(
        "a second attempt is counted like a first one",
        "fields.again",
        "fields.never",
    ),
    text(
        "a known id is answered `new`",
        "answers[i - first + 1] = type(added) == 'number' and 1 - added",
        "answers[i - first + 1] = 0",
    ),
    text(
        "the newest report is not recorded",
        "redis.call('HSET', KEYS[6], 'newest', newest)",
        "",
    ),
    text(
        "the newest report is not recorded again when it is final",
        "if newest >= 0 then redis.call('HSET', KEYS[5], 'newest', newest) end",
        "",
    ),
    text(
        "recording a window removes the pending record of another",
        "  redis.call('HDEL', KEYS[3], field)",
        "  redis.call('DEL', KEYS[3])",
    ),
    text(
        "windows are removed from the index although they have new ids",
        "if score and tonumber(score) == tonumber(ARGV[i + 1]) then redis.call('ZREM', KEYS[1], ARGV[i]) end",
        "redis.call('ZREM', KEYS[1], ARGV[i])",
    ),
    text(
        "draining removes rows that were added meanwhile",
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
