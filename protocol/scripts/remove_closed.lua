-- Removes the ids of a set of a closed window. That it was closed is remembered for longer: a reporter that was
-- paused before it closed one of them would otherwise close what came since.
--
-- KEYS: the closed ids, and what tells that the window was closed. ARGV: seconds to remember it.
redis.call('UNLINK', KEYS[1])
redis.call('SET', KEYS[2], 1, 'EX', ARGV[1])
return 1
