-- Adds a callback job, and answers 1, or 0 if its endpoint has had enough of them in its window.
--
-- KEYS: the stream of callback jobs, the window's endpoints. ARGV: the most jobs of an endpoint, the expiry of
-- the endpoints, the job's endpoint, its fields and values.
local jobs = redis.call('HINCRBY', KEYS[2], redis.sha1hex(ARGV[3]), 1)
if jobs == 1 then redis.call('EXPIRE', KEYS[2], ARGV[2], 'NX') end
if jobs > tonumber(ARGV[1]) then return 0 end
redis.call('XADD', KEYS[1], '*', unpack(ARGV, 4))
return 1
