-- Makes windows final, and writes down that what they were counted by is to be removed. Answers 0 without the
-- lease. The newest report is noted here too: a Redis that has taken over may have lost the note of before, and a
-- leader that does not find it would count windows again that have nothing left to count.
--
-- KEYS: lease, reports, pending, open reports, progress. ARGV: lease holder, seconds to keep what is pending, what
-- is pending, then for each window its field and report.
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
