-- Closes a set of a window: moves its ids to another key, so that no more ids are added to them.
-- Returns their number. If it runs again, or for a reporter that has lost the lease meanwhile, it
-- changes nothing, even if there was no id to move.
--
-- Like every script with which windows are reported and removed, it begins with a command that a
-- full Redis (`noeviction`) allows: one that removes something. Redis then allows the rest of the
-- script. Only in this way does Redis get room again.
--
-- KEYS: the ids, the key to which they are moved, the mark that the window was closed. ARGV:
-- seconds to keep the latter two.
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
