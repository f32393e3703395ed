-- Notes the window with which the first reporter began, unless there is a note. Returns the start
-- of that window.
--
-- KEYS: the note. ARGV: the start of the window to begin with.
local began = redis.call('GET', KEYS[1])
if began then return began end
redis.call('UNLINK', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
