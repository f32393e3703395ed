-- Tries commands, and returns those that Redis refuses.
--
-- KEYS: a key that is not used. ARGV: commands with their arguments; `KEY` stands for the key if
-- that is not the first argument.
local refused = {}
for _, command in ipairs(ARGV) do
  local words = {}
  for word in string.gmatch(command, '[^ ]+') do words[#words + 1] = word end
  local name, sub = string.match(words[1], '([A-Z]+)|?([A-Z]*)')
  local call = { name }
  if sub ~= '' then call[#call + 1] = sub end
  if name == 'XREADGROUP' then
    call = { name, 'GROUP', 'reporter', 'doctor', 'STREAMS', KEYS[1], '>' }
  elseif name ~= 'TIME' then
    call[#call + 1] = KEYS[1]
    for i = 2, #words do call[#call + 1] = words[i] == 'KEY' and KEYS[1] or words[i] end
  end
  local done = redis.pcall(unpack(call))
  local failed = type(done) == 'table' and done.err or ''
  if failed:find('NOPERM') or failed:find('permission') or failed:find('t run this command') then
    refused[#refused + 1] = words[1]
  end
end
redis.pcall('UNLINK', KEYS[1])
redis.pcall('DEL', KEYS[1])
return refused
