-- A function for other scripts. It lets the key `key`, which must exist, expire a day after `ends`
-- (in Unix seconds), or a day after now if that is later. It uses Redis' own clock, because the
-- clock of an edge host may be wrong. However far ahead `ends` is, the key expires at most a week
-- later than a day after now.
--
-- A key that already has an expiry keeps it. With `again`, the key gets the later of the two, and
-- the replicas receive this command in any case: since Redis 7.2, `WAIT` waits for the last write
-- that its own connection has sent to them, and an `SADD` of ids that are already there sends
-- nothing.
local function keep(key, ends, again)
  local now = tonumber(redis.call('TIME')[1])
  local at = math.min(math.max(tonumber(ends), now), now + 604800) + 86400
  if again then
    return redis.call('EXPIREAT', key, math.max(at, redis.call('EXPIRETIME', key)))
  end
  return redis.call('EXPIREAT', key, at, 'NX')
end
