-- Makes windows final, and stores that their closed sets are to be removed. Returns 0 without the
-- lease.
--
-- It also notes the newest report. After a failover, Redis may have lost the earlier note. A leader
-- that does not find the note would count windows again that have no ids left.
--
-- KEYS: lease, reports, pending, open reports, progress. ARGV: lease holder, seconds to keep the
-- pending steps, the pending step, then for each window its field and report.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local newest = tonumber(redis.call('HGET', KEYS[5], 'newest') or -1)
for i = 4, #ARGV, 2 do
  redis.call('ZREM', KEYS[4], ARGV[i])
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
  redis.call('HSET', KEYS[3], ARGV[i], ARGV[3])
  newest = math.max(newest, tonumber(ARGV[i]))
end
redis.call('EXPIRE', KEYS[3], ARGV[2])
if newest >= 0 then redis.call('HSET', KEYS[5], 'newest', newest) end
return 1
