-- Records a request, and returns its outcome in the windows of each length: `new`, `duplicate`, or the
-- outcome in its arguments. If there is no room for the callback job, it does nothing and returns
-- `full`. If the id or the job exceeds a limit, it returns the name of that limit and counts the
-- request.
--
-- A repeated attempt, after one whose answer was lost, counts nothing in a window unless it adds the
-- id there: the earlier attempt may have counted the request. So the statistics may miss a request,
-- but they never count one twice, unless its window was closed between the attempts. Ids are exact in
-- both cases.
--
-- If the id is the first of its set, or in a set elsewhere, the script notes that the window has
-- ids. With a set elsewhere, it does so even if the id was already in that set: the instance that
-- added it may have received no answer, and noted nothing.
--
-- KEYS: for each length, the window's ids, its statistics and the index of windows; then the stream
-- of callback jobs and the number of jobs per endpoint of the first window. ARGV: for each length, the
-- end of the window in Unix seconds, its entry in the index, and the expiry of its statistics in
-- seconds; then names, each with its value:
--   id              the id, if it is to be added here
--   outcome         the outcome of the id, if its set is elsewhere
--   again           1 if this is a repeated attempt
--   waits           1 if replicas are waited for (see keep.lua)
--   limit           the maximum number of ids of the first window, if that is limited
--   endpoint        the endpoint of the callback job, if there is one
--   most            the maximum number of jobs that wait
--   endpoint_limit  the maximum number of jobs of an endpoint, if that is limited
--   brief           the expiry of the number of jobs per endpoint, in seconds
-- and last, if there is a callback job, `job` with its fields and values.
local callbacks, endpoints = KEYS[#KEYS - 1], KEYS[#KEYS]
local lengths = (#KEYS - 2) / 3
local fields, at = {}, 3 * lengths + 1
while at < #ARGV and ARGV[at] ~= 'job' do
  fields[ARGV[at]] = ARGV[at + 1]
  at = at + 2
end
local has_job = ARGV[at] == 'job'
if has_job and redis.call('XLEN', callbacks) >= tonumber(fields.most) then return {'full'} end
local beyond = nil
if fields.id and fields.limit and redis.call('SCARD', KEYS[1]) >= tonumber(fields.limit)
    and redis.call('SISMEMBER', KEYS[1], fields.id) == 0 then
  beyond = 'window-limit'
elseif has_job and fields.endpoint_limit then
  local jobs = redis.call('HINCRBY', endpoints, redis.sha1hex(fields.endpoint), 1)
  if jobs == 1 then redis.call('EXPIRE', endpoints, fields.brief, 'NX') end
  if jobs > tonumber(fields.endpoint_limit) then beyond = 'endpoint-limit' end
end
if has_job and not beyond then redis.call('XADD', callbacks, '*', unpack(ARGV, at + 1)) end
local outcomes = {}
for i = 1, 3 * lengths, 3 do
  local ids, stats, windows = unpack(KEYS, i, i + 2)
  local ends, entry, expiry = unpack(ARGV, i, i + 2)
  local outcome = fields.outcome
  local has_first = not fields.id and (outcome == 'new' or outcome == 'duplicate')
  if fields.id and not beyond then
    outcome = 'duplicate'
    if redis.call('SADD', ids, fields.id) == 1 then
      outcome = 'new'
      keep(ids, ends)
      has_first = redis.call('SCARD', ids) == 1
    end
    if fields.waits then keep(ids, ends, true) end
  end
  if has_first then
    local time = redis.call('TIME')
    local score = time[1] + time[2] / 1000000
    if redis.call('ZADD', windows, score, entry) == 1 then redis.call('EXPIRE', windows, 777600) end
  end
  if (beyond or outcome) and (not fields.again or fields.id and outcome == 'new') then
    if redis.call('HINCRBY', stats, 'requests', 1) == 1 then redis.call('EXPIRE', stats, expiry, 'NX') end
    redis.call('HINCRBY', stats, beyond and 'limited' or outcome, 1)
  end
  outcomes[#outcomes + 1] = beyond or outcome or ''
end
return outcomes
