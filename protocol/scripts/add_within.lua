-- Adds ids to a set as long as there is room. Returns the outcome of each id: 0 if it is new, 1 if
-- it was already there, 2 if there was no room.
--
-- KEYS: the set. ARGV: the maximum number of ids or an empty text, the end of the window in Unix
-- seconds or an empty text, `again` or an empty text (see keep.lua), and the ids, all different.
local known = redis.call('SMISMEMBER', KEYS[1], unpack(ARGV, 4))
local room = ARGV[1] ~= '' and ARGV[1] - redis.call('SCARD', KEYS[1]) or math.huge
for i, there in ipairs(known) do
  if there == 0 and room > 0 then
    redis.call('SADD', KEYS[1], ARGV[i + 3])
    room = room - 1
  elseif there == 0 then
    known[i] = 2
  end
end
if ARGV[2] ~= '' then keep(KEYS[1], ARGV[2], ARGV[3] ~= '') end
return known
