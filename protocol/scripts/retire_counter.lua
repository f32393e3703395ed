-- Removes a named counter from those in use, unless it was registered since. Notes from which window
-- on it is not reported. Returns 1.
--
-- KEYS: the counters in use, the progress of the counter's reports. ARGV: the name, the first time in
-- Unix seconds that is later than the last registration, the start of the window.
local used = redis.call('ZSCORE', KEYS[1], ARGV[1])
if used and tonumber(used) < tonumber(ARGV[2]) then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('HSET', KEYS[2], 'idle', ARGV[3])
end
return 1
