-- Sets the expiry of a set of ids: see keep.lua. Returns 0 if the set does not exist or, without
-- `again`, already has an expiry.
--
-- KEYS: the set. ARGV: the end of its window in Unix seconds, and `again` or an empty text.
return keep(KEYS[1], ARGV[1], ARGV[2] ~= '')
