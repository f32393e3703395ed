-- Notes where the first reporter of all began, unless one has, and answers where that was.
--
-- KEYS: where that is noted. ARGV: the start of the window that it is to begin with.
local began = redis.call('GET', KEYS[1])
if began then return began end
redis.call('UNLINK', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
