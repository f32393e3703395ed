-- Removes a named counter from those in use, unless it was registered since or a window has ids. Notes
-- from which window on it is not reported. Returns whether the lease is held.
--
-- KEYS: the lease, the counters in use, the progress of the counter's reports, its index of windows.
-- ARGV: the holder, the name, the first time in Unix seconds that is later than the last
-- registration, the start of the window.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local used = redis.call('ZSCORE', KEYS[2], ARGV[2])
if used and tonumber(used) < tonumber(ARGV[3]) and redis.call('ZCARD', KEYS[4]) == 0 then
  redis.call('ZREM', KEYS[2], ARGV[2])
  redis.call('HSET', KEYS[3], 'idle', ARGV[4])
end
return 1
