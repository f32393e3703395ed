-- The traffic. TRAFFIC=random: ids random over a million. TRAFFIC=repeats: one request in ten has an id never seen before,
-- nine repeat one of the thread's last hundred. Each thread of each run has ids of its own, or runs would repeat each other.
local threads = 0
function setup(thread)
  threads = threads + 1
  thread:set("number", threads)
end

local base, fresh, sent = 0, 0, 0
local repeats = os.getenv("TRAFFIC") == "repeats"
function init(args)
  local seed = tonumber(os.getenv("SEED") or "1") * 64 + number
  math.randomseed(seed)
  base = (seed % 1000000) * 1000000000
end

local head, tail = "GET /api/verve/accept?id=", " HTTP/1.1\r\nHost: verve.bench\r\n\r\n"
function request()
  local id
  if repeats then
    sent = sent + 1
    if sent % 10 == 1 then
      fresh = fresh + 1
      id = fresh
    else
      id = math.max(1, fresh - math.random(0, 99))
    end
    id = base + id
  else
    id = math.random(1, 1000000)
  end
  return head .. string.format("%d", id) .. tail
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"requests":%d,"microseconds":%d,"errors":%d,"p50":%d,"p99":%d,"p999":%d}\n',
    summary.requests, summary.duration, errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
