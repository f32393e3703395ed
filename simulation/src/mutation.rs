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
    switch("who waits for a request that is given up is not woken", Into::NoWake),
    switch("what is asked of Redis may take for ever", Into::NoLimit),
    switch("the index is not told of a window", Into::Ignored("ZADD", ":windows:")),
    switch(
        "jobs that a dead replica has taken are not claimed",
        Into::Ignored("XAUTOCLAIM", ""),
    ),
    switch("replicas of Redis are not waited for", Into::Ignored("WAIT", "")),
    text(
        "nothing is written that replicas are waited for",
        "return redis.call('EXPIREAT', key, math.max(at, redis.call('EXPIRETIME', key)))",
        "return 1",
    ),
    text(
        "a job that fails is removed though there is no room for it",
        "redis.call('ZADD', KEYS[2], time[1]",
        "redis.pcall('ZADD', KEYS[2], time[1]",
    ),
    text(
        "a job that is tried again is not kept meanwhile",
        "redis.call('ZADD', KEYS[1], 'XX', now + ARGV[1], job)",
        "redis.call('ZREM', KEYS[1], job)",
    ),
    text("no job is queued with a report", "if n > 0 then", "if false then"),
    text(
        "a batch that failed halfway counts as run",
        "    redis.call('DEL', KEYS[1])\n    return done",
        "    return done",
    ),
    text(
        "a named counter is not registered",
        "redis.call('ZADD', KEYS[1], time[1] + time[2] / 1000000, ARGV[1])",
        "",
    ),
    text(
        "ids do not expire",
        "return redis.call('EXPIREAT', key, at, 'NX')",
        "return 0",
    ),
    text("a lease does not end", ", 'PX', ARGV[2])", ")"),
    text(
        "who renews a lease need not hold it",
        "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end\nreturn",
        "return",
    ),
    text(
        "who releases a lease need not hold it",
        "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end",
        "return redis.call('DEL', KEYS[1])",
    ),
    text(
        "it is not noted where reporting begins",
        "redis.call('SET', KEYS[1], ARGV[1])\nreturn ARGV[1]",
        "return ARGV[1]",
    ),
    text(
        "windows with late ids are not noted",
        "for i = 2, #ARGV do redis.call('ZADD', KEYS[1], ARGV[i], ARGV[i]) end",
        "",
    ),
    text(
        "what is about to be published is not written down",
        "redis.call('HSET', KEYS[2], unpack(ARGV, 3))",
        "",
    ),
    text(
        "a final window stays open",
        "  redis.call('ZREM', KEYS[4], ARGV[i])\n",
        "",
    ),
    text(
        "an instance for one request does not tell the index",
        "has_first = redis.call('SCARD', ids) == 1",
        "has_first = false",
    ),
    text(
        "a row of the spool has no ids",
        "INSERT INTO ids (key, ids, count) SELECT ?2, ?3, ?4",
        "INSERT INTO ids (key, ids, count) SELECT ?2, '', ?4",
    ),
    text(
        "a batch is in the spool twice",
        "AND NOT EXISTS (SELECT 1 FROM commands WHERE batch = ?2) ",
        "",
    ),
    text(
        "batches are removed from the spool with those that have run",
        "DELETE FROM commands WHERE batch IN",
        "DELETE FROM commands WHERE 1 OR batch IN",
    ),
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
        "the newest report is not noted again when it is final",
        "if newest >= 0 then redis.call('HSET', KEYS[5], 'newest', newest) end",
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
