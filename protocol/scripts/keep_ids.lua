-- Has a set of ids expire, see keep.lua. Answers 0 if the set is not there or, without `again`, has an expiry.
--
-- KEYS: the set. ARGV: when its window ends, in Unix seconds, and `again` or nothing.
return keep(KEYS[1], ARGV[1], ARGV[2] ~= '')
