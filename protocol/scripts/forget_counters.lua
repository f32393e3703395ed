-- Removes the names of long unused counters from the list, and returns them. One script does both,
-- so that a counter to which ids are added meanwhile is not among them.
--
-- KEYS: the counters. ARGV: for how long a counter must be unused, in seconds.
local before = redis.call('TIME')[1] - ARGV[1]
local unused = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. before)
if #unused > 0 then redis.call('ZREM', KEYS[1], unpack(unused)) end
return unused
