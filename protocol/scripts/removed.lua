-- Removes the note that closed sets are to be removed. If another leader has followed this one,
-- something else may now be pending for such a window, and stays.
--
-- KEYS: pending. ARGV: the pending step, then the fields of the windows.
for i = 2, #ARGV do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
return 1
