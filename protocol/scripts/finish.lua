-- Makes windows final, and writes down that what they were counted by is to be removed. Answers 0 without the
-- lease.
--
-- KEYS: lease, reports, pending, open reports. ARGV: lease holder, seconds to keep what is pending, what is
-- pending, then for each window its field and report.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for i = 4, #ARGV, 2 do
  redis.call('ZREM', KEYS[4], ARGV[i])
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
  redis.call('HSET', KEYS[3], ARGV[i], ARGV[3])
end
redis.call('EXPIRE', KEYS[3], ARGV[2])
return 1
