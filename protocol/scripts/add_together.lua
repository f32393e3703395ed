-- Adds ids to sets. Returns for each id 1 if it was already there, 0 if not, or -1 if its set is no
-- longer on this node. If there is only one set, the latter is an error.
--
-- KEYS: one of the sets, which routes the script to their node. ARGV: for each set its key, the
-- number of its ids, and these ids, all different.
local run = #ARGV == 2 + ARGV[2] and redis.call or redis.pcall
local known, at = {}, 1
while at < #ARGV do
  local key, first, last = ARGV[at], at + 2, at + 1 + tonumber(ARGV[at + 1])
  local answers = {}
  if last - first < 2 then
    for i = first, last do
      local added = run('SADD', key, ARGV[i])
      answers[i - first + 1] = type(added) == 'number' and 1 - added
    end
  else
    local before = run('SMISMEMBER', key, unpack(ARGV, first, last))
    if not before.err and type(run('SADD', key, unpack(ARGV, first, last))) == 'number' then answers = before end
  end
  for i = 1, last - first + 1 do known[#known + 1] = answers[i] or -1 end
  at = last + 1
end
return known
