-- Notes the progress of the reporter.
--
-- KEYS: progress. ARGV: a field, and its value.
redis.call('HDEL', KEYS[1], '')
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
