-- Moves ids that arrived after their window was final to the late ids. Returns how many late ids
-- this adds.
--
-- KEYS: the ids, the late ids. ARGV: seconds to keep the late ids.
local ids, late = unpack(KEYS)
local before = redis.call('SCARD', late)
if redis.call('EXISTS', ids) == 1 then
  redis.call('SREM', ids, '')
  redis.call('SUNIONSTORE', late, late, ids)
  redis.call('EXPIRE', late, ARGV[1])
  redis.call('UNLINK', ids)
end
return redis.call('SCARD', late) - before
