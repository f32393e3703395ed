-- Gets the lease unless somebody has it, and answers whether it did. Begins with what a full Redis allows, see
-- close.lua.
--
-- KEYS: lease. ARGV: holder, milliseconds.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('UNLINK', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
