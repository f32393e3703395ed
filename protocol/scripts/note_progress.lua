-- Notes how far the reporter is.
--
-- KEYS: progress. ARGV: what, and its value.
redis.call('HDEL', KEYS[1], '')
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
