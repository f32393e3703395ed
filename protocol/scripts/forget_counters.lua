-- Removes names of long unused counters from the lists, at most 1,000, and returns them. One script
-- does all, so that a counter to which ids are added meanwhile is not among them.
--
-- KEYS: the counters, and those in use of each window length. ARGV: for how long a counter must be unused, in seconds.
local before = redis.call('TIME')[1] - ARGV[1]
local unused = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. before, 'LIMIT', 0, 1000)
if #unused > 0 then
  for _, counters in ipairs(KEYS) do redis.call('ZREM', counters, unpack(unused)) end
end
return unused
