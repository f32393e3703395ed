-- Renews the lease, if the same holder still has it. Returns 1 if it has, or else 0.
--
-- KEYS: lease. ARGV: holder, milliseconds.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
