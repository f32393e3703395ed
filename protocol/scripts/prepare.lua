-- Stores what is about to be published. Returns 0 without the lease. Like the scripts that follow
-- it, it begins with a command that a full Redis allows: see close.lua.
--
-- KEYS: lease, pending. ARGV: lease holder, seconds to keep the pending steps, then fields and
-- values.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[2], '')
redis.call('HSET', KEYS[2], unpack(ARGV, 3))
redis.call('EXPIRE', KEYS[2], ARGV[2])
return 1
