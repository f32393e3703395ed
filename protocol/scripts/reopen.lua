-- Reverts that windows are final, and that their sets are to be removed. Returns 0 without the
-- lease.
--
-- KEYS: lease, reports, open reports, pending. ARGV: lease holder, the pending step of such a
-- window, then for each window its field and report.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[4], '')
for i = 3, #ARGV, 2 do
  if redis.call('HGET', KEYS[4], ARGV[i]) == ARGV[2] then redis.call('HDEL', KEYS[4], ARGV[i]) end
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
  redis.call('ZADD', KEYS[3], ARGV[i], ARGV[i])
end
return 1
