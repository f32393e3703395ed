-- Records reports, and queues fixed callbacks. A report that is already recorded is not recorded
-- again, so a script whose answer was lost can run again. Also notes the newest report, and lowers
-- the note before which window there are none. Returns 0 without the lease.
--
-- KEYS: lease, reports, pending, callbacks, open reports, progress. ARGV: lease holder, then for
-- each report its field and value, whether it is open (1 or 0), the number of its job's arguments,
-- and these arguments.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[3], '')
local newest = tonumber(redis.call('HGET', KEYS[6], 'newest') or -1)
local trimmed = tonumber(redis.call('HGET', KEYS[6], 'trimmed') or 0)
local at = 2
while ARGV[at] do
  local field, report, open, n = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  if redis.call('HGET', KEYS[2], field) ~= report then
    if n > 0 then redis.call('XADD', KEYS[4], '*', unpack(ARGV, at + 4, at + 3 + n)) end
    redis.call('HSET', KEYS[2], field, report)
  end
  if open == '1' then redis.call('ZADD', KEYS[5], field, field) else redis.call('ZREM', KEYS[5], field) end
  newest = math.max(newest, tonumber(field))
  if tonumber(field) < trimmed then
    trimmed = tonumber(field)
    redis.call('HSET', KEYS[6], 'trimmed', field)
  end
  redis.call('HDEL', KEYS[3], field)
  at = at + 4 + n
end
redis.call('HSET', KEYS[6], 'newest', newest)
return 1
