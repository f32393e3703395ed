-- Removes consumers that have been idle for some time. Returns the number of removed consumers. A
-- consumer that has jobs stays until these are claimed: if it were removed with them, the jobs
-- would be pending without a consumer.
--
-- KEYS: stream. ARGV: group, milliseconds, and a name if only that consumer is meant.
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
