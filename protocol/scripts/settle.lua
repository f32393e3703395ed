-- Moves a job away from where it is, by the verdict on it. It adds the job before it removes it: a
-- script that fails halfway, for example because memory is short, must not have removed the job.
--
-- KEYS: stream, retry, dead. ARGV: `stream` or `retry`, the id or member there, the group, and the
-- verdict:
-- - `done`
-- - `again`, the member for the retry set, the milliseconds until it is due, the maximum number of
--   members. A job that is deferred for the second time is the same member as before
-- - `dead`, the maximum number of entries, the fields of the entry
--
-- Returns 0, or the number of dead letters that were dropped for this one; -1 if there is no room,
-- and the job stays; -2 if the job is gone, because another replica has settled it.
local from_stream, id, verdict = ARGV[1] == 'stream', ARGV[2], ARGV[4]
if from_stream then
  if not redis.call('XRANGE', KEYS[1], id, id)[1] then
    redis.call('XACK', KEYS[1], ARGV[3], id)
    return -2
  end
elseif not redis.call('ZSCORE', KEYS[2], id) then
  return -2
end
local dropped = 0
if verdict == 'again' then
  if from_stream and redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[7]) then return -1 end
  local time = redis.call('TIME')
  redis.call('ZADD', KEYS[2], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[6], ARGV[5])
elseif verdict == 'dead' then
  redis.call('XADD', KEYS[3], '*', unpack(ARGV, 6))
  if redis.call('XLEN', KEYS[3]) > tonumber(ARGV[5]) then
    dropped = redis.call('XTRIM', KEYS[3], 'MAXLEN', ARGV[5])
  end
end
if from_stream then
  redis.call('XACK', KEYS[1], ARGV[3], id)
  redis.call('XDEL', KEYS[1], id)
elseif verdict ~= 'again' or ARGV[5] ~= id then
  redis.call('ZREM', KEYS[2], id)
end
return dropped
