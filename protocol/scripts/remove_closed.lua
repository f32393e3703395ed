-- Removes the ids of a set of a closed window. The mark that the window was closed is kept longer:
-- without it, a reporter that was paused before it closed the set would close ids that arrived
-- since.
--
-- KEYS: the closed ids, the mark that the window was closed. ARGV: seconds to keep the mark.
redis.call('UNLINK', KEYS[1])
redis.call('SET', KEYS[2], 1, 'EX', ARGV[1])
return 1
