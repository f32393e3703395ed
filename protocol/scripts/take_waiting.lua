-- Takes due jobs of the sorted set, and moves them to when they are free again. By the clock of Redis: those of
-- replicas may differ, and one that is fast would take what another is delivering. Begins with what a full Redis
-- allows, see close.lua, since what is delivered goes.
--
-- KEYS: retry. ARGV: milliseconds until free again, how many.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREM', KEYS[1], '')
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[2])
for _, job in ipairs(due) do redis.call('ZADD', KEYS[1], 'XX', now + ARGV[1], job) end
return due
