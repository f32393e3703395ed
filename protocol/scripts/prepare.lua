-- Writes down what is about to be published. Answers 0 without the lease. Begins with what a full Redis allows,
-- see close.lua; as those that follow it.
--
-- KEYS: lease, pending. ARGV: lease holder, seconds to keep it, then fields and values.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[2], '')
redis.call('HSET', KEYS[2], unpack(ARGV, 3))
redis.call('EXPIRE', KEYS[2], ARGV[2])
return 1
