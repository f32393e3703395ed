-- Adds the id, if there is one, and the callback job, if there is one; counts what came of the request, and
-- answers it. If there is no room for the job, it does nothing and answers `full`; if one of both is beyond a
-- limit, it answers which, and counts the request.
-- An attempt after one whose answer was lost counts nothing for an id that is there: it may have been counted.
-- So the statistics may miss a request, but never count one twice. Ids are exact either way.
-- If the id is the first of its set, or new in a set elsewhere, it notes that the window has ids.
--
-- KEYS: the window's ids, its statistics, the stream of callback jobs, the window's endpoints, the windows that
-- have ids. ARGV: the id or nothing, the outcome where there is no id or nothing, whether this is another
-- attempt (1 or nothing), when the window ends in Unix seconds, whether replicas are waited for (1 or nothing,
-- see keep.lua), the window as it is noted, the expiry of the statistics, the most jobs, the most ids of a window
-- or nothing, the most jobs of an endpoint or nothing, the expiry of the endpoints, the job's endpoint, its
-- fields and values.
local id, outcome, again, ends, waits, indexed, expiry, most, ids_limit, jobs_limit, brief, endpoint = unpack(ARGV, 1, 12)
local job = #ARGV > 12
local has_first = id == '' and outcome == 'new'
if job and redis.call('XLEN', KEYS[3]) >= tonumber(most) then return 'full' end
local beyond = nil
if id ~= '' and ids_limit ~= '' and redis.call('SCARD', KEYS[1]) >= tonumber(ids_limit)
    and redis.call('SISMEMBER', KEYS[1], id) == 0 then
  beyond = 'window-limit'
elseif job and jobs_limit ~= '' then
  local jobs = redis.call('HINCRBY', KEYS[4], redis.sha1hex(endpoint), 1)
  if jobs == 1 then redis.call('EXPIRE', KEYS[4], brief, 'NX') end
  if jobs > tonumber(jobs_limit) then beyond = 'endpoint-limit' end
end
if id ~= '' and not beyond then
  outcome = 'duplicate'
  if redis.call('SADD', KEYS[1], id) == 1 then
    outcome = 'new'
    keep(KEYS[1], ends)
    has_first = redis.call('SCARD', KEYS[1]) == 1
  end
  if waits ~= '' then keep(KEYS[1], ends, true) end
end
if job and not beyond then redis.call('XADD', KEYS[3], '*', unpack(ARGV, 13)) end
if has_first then
  local time = redis.call('TIME')
  redis.call('ZADD', KEYS[5], time[1] + time[2] / 1000000, indexed)
  redis.call('EXPIRE', KEYS[5], 777600)
end
if (beyond or outcome ~= '') and (again == '' or outcome == 'new') then
  if redis.call('HINCRBY', KEYS[2], 'requests', 1) == 1 then redis.call('EXPIRE', KEYS[2], expiry, 'NX') end
  redis.call('HINCRBY', KEYS[2], beyond and 'limited' or outcome, 1)
end
return beyond or outcome
