-- Records a request, and returns its outcome: `new`, `duplicate`, or the outcome in its arguments.
-- If there is no room for the callback job, it does nothing and returns `full`. If the id or the
-- job exceeds a limit, it returns the name of that limit and counts the request.
--
-- A repeated attempt, after one whose answer was lost, counts nothing unless it adds the id: the
-- earlier attempt may have counted the request. So the statistics may miss a request, but they
-- never count one twice, unless its window was closed between the attempts. Ids are exact in both
-- cases.
--
-- If the id is the first of its set, or in a set elsewhere, the script notes that the window has
-- ids. With a set elsewhere, it does so even if the id was already in that set: the instance that
-- added it may have received no answer, and noted nothing.
--
-- KEYS: the window's ids, its statistics, the stream of callback jobs, the number of jobs per
-- endpoint of the window, the index of windows. ARGV: names, each with its value:
--   id              the id, if it is to be added here
--   outcome         the outcome of the id, if its set is elsewhere
--   again           1 if this is a repeated attempt
--   ends            the end of the window, in Unix seconds
--   waits           1 if replicas are waited for (see keep.lua)
--   window          the window's entry in the index
--   expiry          the expiry of the statistics, in seconds
--   limit           the maximum number of ids of the window, if that is limited
--   endpoint        the endpoint of the callback job, if there is one
--   most            the maximum number of jobs that wait
--   endpoint_limit  the maximum number of jobs of an endpoint, if that is limited
--   brief           the expiry of the number of jobs per endpoint, in seconds
-- and last, if there is a callback job, `job` with its fields and values.
local fields, at = {}, 1
while at < #ARGV and ARGV[at] ~= 'job' do
  fields[ARGV[at]] = ARGV[at + 1]
  at = at + 2
end
local ids, stats, callbacks, endpoints, windows = unpack(KEYS)
local has_job, outcome = ARGV[at] == 'job', fields.outcome
local has_first = not fields.id and (outcome == 'new' or outcome == 'duplicate')
if has_job and redis.call('XLEN', callbacks) >= tonumber(fields.most) then return 'full' end
local beyond = nil
if fields.id and fields.limit and redis.call('SCARD', ids) >= tonumber(fields.limit)
    and redis.call('SISMEMBER', ids, fields.id) == 0 then
  beyond = 'window-limit'
elseif has_job and fields.endpoint_limit then
  local jobs = redis.call('HINCRBY', endpoints, redis.sha1hex(fields.endpoint), 1)
  if jobs == 1 then redis.call('EXPIRE', endpoints, fields.brief, 'NX') end
  if jobs > tonumber(fields.endpoint_limit) then beyond = 'endpoint-limit' end
end
if fields.id and not beyond then
  outcome = 'duplicate'
  if redis.call('SADD', ids, fields.id) == 1 then
    outcome = 'new'
    keep(ids, fields.ends)
    has_first = redis.call('SCARD', ids) == 1
  end
  if fields.waits then keep(ids, fields.ends, true) end
end
if has_job and not beyond then redis.call('XADD', callbacks, '*', unpack(ARGV, at + 1)) end
if has_first then
  local time = redis.call('TIME')
  local score = time[1] + time[2] / 1000000
  if redis.call('ZADD', windows, score, fields.window) == 1 then redis.call('EXPIRE', windows, 777600) end
end
if (beyond or outcome) and (not fields.again or fields.id and outcome == 'new') then
  if redis.call('HINCRBY', stats, 'requests', 1) == 1 then redis.call('EXPIRE', stats, fields.expiry, 'NX') end
  redis.call('HINCRBY', stats, beyond and 'limited' or outcome, 1)
end
return beyond or outcome or ''
