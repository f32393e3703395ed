-- Closes a set of a window: moves its ids aside, so that none is added to them any more, and answers how many
-- there are. Done again, or by a reporter that has lost the lease meanwhile, it changes nothing, also when there
-- was no id to move.
-- Like every script that has windows reported and removed, it begins with something that a full Redis
-- (`noeviction`) allows: what removes. After that Redis allows the rest of it, and only so it comes to have room
-- again.
--
-- KEYS: the ids, where they go, and what tells that the window was closed. ARGV: seconds to keep the latter two.
local ids, closed, closing = unpack(KEYS)
if redis.call('EXISTS', closing) == 0 then
  redis.call('UNLINK', closing)
  redis.call('SET', closing, 1, 'EX', ARGV[1])
  if redis.call('EXISTS', closed) == 0 and redis.call('EXISTS', ids) == 1 then
    redis.call('RENAME', ids, closed)
    redis.call('EXPIRE', closed, ARGV[1])
  end
end
return redis.call('SCARD', closed)
