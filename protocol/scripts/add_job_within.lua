-- Adds a callback job, and returns 1. Returns 0 if its endpoint has reached its limit of jobs in
-- the window.
--
-- KEYS: the stream of callback jobs, the number of jobs per endpoint of the window. ARGV: the
-- maximum number of jobs of an endpoint, the expiry of these numbers in seconds, the endpoint of
-- the job, its fields and values.
local jobs = redis.call('HINCRBY', KEYS[2], redis.sha1hex(ARGV[3]), 1)
if jobs == 1 then redis.call('EXPIRE', KEYS[2], ARGV[2], 'NX') end
if jobs > tonumber(ARGV[1]) then return 0 end
redis.call('XADD', KEYS[1], '*', unpack(ARGV, 4))
return 1
