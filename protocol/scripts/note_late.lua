-- Notes that ids of windows are about to be put aside.
--
-- KEYS: the windows of which some are. ARGV: for how long it is known, in seconds, and their starts.
redis.call('ZREM', KEYS[1], '')
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], ARGV[i], ARGV[i]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
