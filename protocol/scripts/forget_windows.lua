-- Removes windows from the index, unless their entries were written again since. It compares the
-- scores as numbers, because `ZSCAN` and `ZSCORE` write the same score differently.
--
-- KEYS: the index of windows. ARGV: members, each with its score.
for i = 1, #ARGV, 2 do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if score and tonumber(score) == tonumber(ARGV[i + 1]) then redis.call('ZREM', KEYS[1], ARGV[i]) end
end
return 1
