//! What the operator may limit: scripts that check it where it is known, in Redis.

use verve_protocol::Window;

use crate::answer::{Answer, Limit, NotCounted, Outcome};
use crate::expiry::keep;

/// Adds ids to a set as far as there is room, and answers for each what came of it: see [`added`].
///
/// KEYS: the set. ARGV: the most ids or nothing, when the window ends in Unix seconds or nothing, `again` or nothing (see the function `keep` of
/// [`KEEP`](crate::expiry::KEEP)), and the ids, all different.
pub const ADD_WITHIN: &str = concat!(
    keep!(),
    r"
local known = redis.call('SMISMEMBER', KEYS[1], unpack(ARGV, 4))
local room = ARGV[1] ~= '' and ARGV[1] - redis.call('SCARD', KEYS[1]) or math.huge
for i, there in ipairs(known) do
  if there == 0 and room > 0 then
    redis.call('SADD', KEYS[1], ARGV[i + 3])
    room = room - 1
  elseif there == 0 then
    known[i] = 2
  end
end
if ARGV[2] ~= '' then keep(KEYS[1], ARGV[2], ARGV[3] ~= '') end
return known"
);

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

/// What came of an id that a script has added: it says 0 if the id is new, 1 if it was there, 2 if there was no room.
#[must_use]
pub const fn added(said: i64) -> Option<Answer> {
    match said {
        0 => Some(Ok(Outcome::New)),
        1 => Some(Ok(Outcome::Duplicate)),
        2 => Some(Err(NotCounted::Limited(Limit::Window))),
        _ => None,
    }
}

/// How long it is known how many jobs an endpoint has had in a window: until no request belongs to it any more.
#[must_use]
pub const fn endpoints_seconds(window: Window) -> u64 {
    window.length().seconds() + 60
}
