-- Removes reports, oldest first, as long as there are more than are to stay. Notes before which
-- window there are none. Returns how many were removed, and how many windows were looked at.
--
-- The note stays if an older report was written meanwhile, which lowers it (record_reports.lua).
--
-- KEYS: reports, progress. ARGV: how many reports stay, the length of a window in seconds, then the
-- starts of windows without a gap.
redis.call('HDEL', KEYS[2], '')
local reports, removed, looked = redis.call('HLEN', KEYS[1]), 0, 0
for i = 3, #ARGV do
  if reports - removed <= tonumber(ARGV[1]) then break end
  removed = removed + redis.call('HDEL', KEYS[1], ARGV[i])
  looked = looked + 1
end
if looked > 0 and (redis.call('HGET', KEYS[2], 'trimmed') or ARGV[3]) == ARGV[3] then
  redis.call('HSET', KEYS[2], 'trimmed', string.format('%d', ARGV[2 + looked] + ARGV[2]))
end
return {removed, looked}
