-- Acquires the lease if nobody holds it. Returns 1 if it did, or else 0. It begins with a command
-- that a full Redis allows: see close.lua.
--
-- KEYS: lease. ARGV: holder, milliseconds.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('UNLINK', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
