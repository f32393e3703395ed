-- Redis' Lua, and what it gives a script.
std = "lua51"
read_globals = { "redis", "cjson", "KEYS", "ARGV" }
max_line_length = 120

-- A function for other scripts, sent before them.
files["protocol/scripts/keep.lua"].ignore = { "211/keep" }
for _, script in ipairs({ "add_within", "keep_ids", "record" }) do
  files["protocol/scripts/" .. script .. ".lua"].read_globals = { "keep" }
end
