-- Counts what came of many ids, and notes that the window has ids.
--
-- KEYS: the window's statistics, the windows that have ids. ARGV: the expiry of what has none, the window as it
-- is noted, and fields, each with what to add to it.
local time = redis.call('TIME')
redis.call('ZADD', KEYS[2], time[1] + time[2] / 1000000, ARGV[2])
redis.call('EXPIRE', KEYS[2], 777600)
for i = 3, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
return redis.call('EXPIRE', KEYS[1], ARGV[1], 'NX')
