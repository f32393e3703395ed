//! What the operator may limit: scripts that check it where it is known, in Redis.

use verve_protocol::Window;

use crate::answer::{Answer, Limit, Outcome};

/// Adds ids to a set as far as there is room, and answers for each what came of it: see [`added`].
///
/// KEYS: the set. ARGV: the most ids or nothing, the expiry of what has none or nothing, and the ids, all different.
pub const ADD_WITHIN: &str = r"
local known = redis.call('SMISMEMBER', KEYS[1], unpack(ARGV, 3))
local room = ARGV[1] ~= '' and ARGV[1] - redis.call('SCARD', KEYS[1]) or math.huge
for i, there in ipairs(known) do
  if there == 0 and room > 0 then
    redis.call('SADD', KEYS[1], ARGV[i + 2])
    room = room - 1
  elseif there == 0 then
    known[i] = 2
  end
end
if ARGV[2] ~= '' then redis.call('EXPIRE', KEYS[1], ARGV[2], 'NX') end
return known";

/// Adds a callback job, and answers 1, or 0 if its endpoint has had enough of them in its window.
///
/// KEYS: the stream of callback jobs, the window's endpoints. ARGV: the most jobs of an endpoint, the expiry of the endpoints, the job's
/// endpoint, its fields and values.
pub const ADD_JOB_WITHIN: &str = r"
local jobs = redis.call('HINCRBY', KEYS[2], redis.sha1hex(ARGV[3]), 1)
if jobs == 1 then redis.call('EXPIRE', KEYS[2], ARGV[2], 'NX') end
if jobs > tonumber(ARGV[1]) then return 0 end
redis.call('XADD', KEYS[1], '*', unpack(ARGV, 4))
return 1";

/// Notes that a named counter is in use, unless there may be no more of them: then it answers `full`.
///
/// KEYS: the counters. ARGV: the name, the start of the window in which it is used, the most counters or nothing.
pub const TELL_COUNTER: &str = r"
if ARGV[3] ~= '' and not redis.call('ZSCORE', KEYS[1], ARGV[1]) and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) then
  return 'full'
end
redis.call('ZADD', KEYS[1], 'GT', ARGV[2], ARGV[1])
return 'known'";

/// What [`TELL_COUNTER`] has said: whether there may be no more counters.
#[must_use]
pub fn no_more_counters(said: &[u8]) -> Option<Limit> {
    (said == b"full").then_some(Limit::Counters)
}

/// What came of an id that a script has added: it says 0 if the id is new, 1 if it was there, 2 if there was no room.
#[must_use]
pub const fn added(said: i64) -> Option<Answer> {
    match said {
        0 => Some(Answer::Recorded(Outcome::New)),
        1 => Some(Answer::Recorded(Outcome::Duplicate)),
        2 => Some(Answer::Limited(Limit::Window)),
        _ => None,
    }
}

/// How long it is known how many jobs an endpoint has had in a window: until no request belongs to it any more.
#[must_use]
pub const fn endpoints_seconds(window: Window) -> u64 {
    window.length().seconds() + 60
}
