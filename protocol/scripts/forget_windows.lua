-- Forgets that windows had ids, unless that was noted again since. Scores as numbers: `ZSCAN` and `ZSCORE` write
-- the same one differently.
--
-- KEYS: the windows that have ids. ARGV: members, each with its score.
for i = 1, #ARGV, 2 do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if score and tonumber(score) == tonumber(ARGV[i + 1]) then redis.call('ZREM', KEYS[1], ARGV[i]) end
end
return 1
