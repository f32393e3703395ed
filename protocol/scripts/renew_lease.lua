-- Renews the lease, if it is still held by the same. Answers whether it is.
--
-- KEYS: lease. ARGV: holder, milliseconds.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
