-- Removes consumers that have been idle for some time. One that still has jobs stays until these are claimed:
-- removed with them, they would be pending with nobody.
--
-- KEYS: stream. ARGV: group, milliseconds, and a name if only that one is meant. Answers how many were removed.
local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
if consumers.err then return 0 end
local removed = 0
for _, fields in ipairs(consumers) do
  local consumer = {}
  for n = 1, #fields, 2 do consumer[fields[n]] = fields[n + 1] end
  local meant = ARGV[3] == nil or ARGV[3] == consumer.name
  if meant and consumer.pending == 0 and consumer.idle >= tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
    removed = removed + 1
  end
end
return removed
