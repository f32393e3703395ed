-- Moves dead letters back to the stream of new jobs, with all their attempts left. Returns for each
-- id 1 if it was moved, 0 if it does not exist, 2 if it is not a job.
--
-- KEYS: dead, stream. ARGV: ids.
local outcomes = {}
for at, id in ipairs(ARGV) do
  local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
  local job, is_job = {}, false
  local fields = entry and entry[2] or {}
  for n = 1, #fields, 2 do
    local name = fields[n]
    if name ~= 'error' and name ~= 'attempts' then
      job[#job + 1] = name
      job[#job + 1] = fields[n + 1]
    end
    is_job = is_job or name == 'endpoint'
  end
  if is_job then
    redis.call('XADD', KEYS[2], '*', unpack(job))
    redis.call('XDEL', KEYS[1], id)
    outcomes[at] = 1
  else
    outcomes[at] = entry and 2 or 0
  end
end
return outcomes
