-- Registers that a named counter is in use now, unless there may be no more of them: then it answers `full`. The
-- time has microseconds, so that each registration changes something, and `WAIT` after it has something to wait
-- for.
--
-- KEYS: the counters. ARGV: the name, the most counters or nothing.
local is_new = not redis.call('ZSCORE', KEYS[1], ARGV[1])
if is_new and ARGV[2] ~= '' and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 'full' end
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], time[1] + time[2] / 1000000, ARGV[1])
return 'known'
