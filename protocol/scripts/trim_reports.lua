-- Removes reports, notes before which window there are none, and returns how many were removed.
--
-- One script does both: a report that is missing was removed only if its window is before the noted
-- one.
--
-- KEYS: reports, progress. ARGV: the start of the first window that is not trimmed, then the starts
-- of the windows whose reports are removed.
local removed = redis.call('HDEL', KEYS[1], unpack(ARGV, 2))
local trimmed = tonumber(redis.call('HGET', KEYS[2], 'trimmed') or -1)
if tonumber(ARGV[1]) > trimmed then redis.call('HSET', KEYS[2], 'trimmed', ARGV[1]) end
return removed
