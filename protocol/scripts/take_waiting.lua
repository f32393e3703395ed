-- Takes the due jobs of the retry set, and moves them to the time when they are free again. It uses
-- the clock of Redis: the clocks of replicas may differ, and a replica whose clock is fast would
-- take a job that another one is delivering. It begins with a command that a full Redis allows (see
-- close.lua), because jobs are removed after their delivery.
--
-- KEYS: retry. ARGV: milliseconds until the jobs are free again, the maximum number of jobs.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREM', KEYS[1], '')
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[2])
for _, job in ipairs(due) do redis.call('ZADD', KEYS[1], 'XX', now + ARGV[1], job) end
return due
