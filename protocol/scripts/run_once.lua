-- Runs a batch of commands unless it has run already, and if there is room where it has callback jobs. Answers 1
-- if the batch has run, now or before; also then it writes, so that `WAIT` has something to wait for. A command
-- that fails is an operator's doing, such as a key of the wrong type: then the whole batch is tried again later.
--
-- KEYS: the batch's own, the stream of callback jobs if it has any, and the other keys of its commands: while their
-- slot moves from one node to another, a script that does not name a key would make a second one. ARGV: the own
-- key's expiry, the most jobs or 0 if it has none, the commands.
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
