-- Registers that a named counter is in use now. Returns `known`, or `full` if the counter is new
-- and there is no room for another one. The time includes microseconds, so that each registration
-- changes something, and a `WAIT` after it has a write to wait for.
--
-- KEYS: the counters, and those in use of each window length. ARGV: the name, the maximum number of
-- counters or an empty text.
local is_new = not redis.call('ZSCORE', KEYS[1], ARGV[1])
if is_new and ARGV[2] ~= '' and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 'full' end
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
for _, counters in ipairs(KEYS) do redis.call('ZADD', counters, now, ARGV[1]) end
return 'known'
