-- Notes that ids of windows are about to be kept apart as late ids.
--
-- KEYS: the windows with late ids. ARGV: how long the note is kept, in seconds, and the starts of
-- the windows.
redis.call('ZREM', KEYS[1], '')
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], ARGV[i], ARGV[i]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
