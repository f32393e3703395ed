-- Puts ids aside that came after their window was final, and answers how many.
--
-- KEYS: the ids, and where they go. ARGV: seconds to keep them.
local ids, late = unpack(KEYS)
local before = redis.call('SCARD', late)
if redis.call('EXISTS', ids) == 1 then
  redis.call('SREM', ids, '')
  redis.call('SUNIONSTORE', late, late, ids)
  redis.call('EXPIRE', late, ARGV[1])
  redis.call('UNLINK', ids)
end
return redis.call('SCARD', late) - before
