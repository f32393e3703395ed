-- Forgets that closed sets are to be removed. Of such a window something else may be pending by now, if this
-- leader was followed by another one.
--
-- KEYS: pending. ARGV: what is pending, then the windows' fields.
for i = 2, #ARGV do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
return 1
