-- Notes which windows have a report, from what is there: for reports of a version that did not note it. What a
-- leader has noted meanwhile stays.
--
-- KEYS: open reports, progress. ARGV: the newest window's start, then those of windows that are not final.
redis.call('HDEL', KEYS[2], '')
if redis.call('HSETNX', KEYS[2], 'newest', ARGV[1]) == 0 then return 0 end
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], ARGV[i], ARGV[i]) end
return 1
