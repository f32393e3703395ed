-- Takes the names of counters that nobody has added to for long off the list, and answers them: at once, so that
-- one that somebody adds to meanwhile is not among them.
--
-- KEYS: the counters. ARGV: for how long nobody may have added to one, in seconds.
local before = redis.call('TIME')[1] - ARGV[1]
local unused = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. before)
if #unused > 0 then redis.call('ZREM', KEYS[1], unpack(unused)) end
return unused
