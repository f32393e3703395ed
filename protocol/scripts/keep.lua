-- A function for other scripts: has the key `key`, which has to be there, expire a day after `ends` (in Unix
-- seconds), or after now where that is later, by Redis' own clock, since the clock of an edge host may be wrong; and
-- at most a week later than it would now, however far ahead `ends` is. A key that has an expiry keeps it. With
-- `again` it gets the later of both, and the replicas are sent that in any case: since Redis 7.2 `WAIT` looks at the
-- last write that its own connection has sent them, and an `SADD` of ids that are there sends nothing.
local function keep(key, ends, again)
  local now = tonumber(redis.call('TIME')[1])
  local at = math.min(math.max(tonumber(ends), now), now + 604800) + 86400
  if again then
    return redis.call('EXPIREAT', key, math.max(at, redis.call('EXPIRETIME', key)))
  end
  return redis.call('EXPIREAT', key, at, 'NX')
end
