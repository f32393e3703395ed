-- Runs a batch of commands, unless it ran before. Returns 1 if the batch has run, now or before, or
-- 0 if it has callback jobs and there is no room for them. If it ran before, the script writes too,
-- so that `WAIT` has a write to wait for. A command fails only if an operator has caused it, for
-- example by a key of the wrong type. Then the whole batch is tried again later.
--
-- KEYS: the idempotency key of the batch, the stream of callback jobs if the batch has any, and the
-- other keys of its commands. Every key must be named: while its slot moves from one node to
-- another, a script that does not name a key would create a second one. ARGV: the expiry of the
-- idempotency key, the maximum number of jobs or 0 if the batch has none, the commands.
local most = tonumber(ARGV[2])
if most > 0 and redis.call('XLEN', KEYS[2]) >= most then return 0 end
if not redis.call('SET', KEYS[1], 1, 'NX', 'EX', ARGV[1]) then
  redis.call('SET', KEYS[1], 1, 'EX', ARGV[1])
  return 1
end
for i = 3, #ARGV do
  local done = redis.pcall(unpack(cjson.decode(ARGV[i])))
  if type(done) == 'table' and done.err then
    redis.call('DEL', KEYS[1])
    return done
  end
end
return 1
