-- Notes which windows have a report, from the reports themselves. This is for reports of a version
-- that did not note it. A note that a leader has made meanwhile stays.
--
-- KEYS: open reports, progress. ARGV: the start of the newest window, then the starts of windows
-- that are not final.
redis.call('HDEL', KEYS[2], '')
if redis.call('HSETNX', KEYS[2], 'newest', ARGV[1]) == 0 then return 0 end
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], ARGV[i], ARGV[i]) end
return 1
