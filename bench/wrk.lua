-- wrk -s bench/wrk.lua: POSTs the file BENCH_BODY and prints one line of JSON at the end.
-- BENCH_HEADERS: "Name: value" lines, Content-Type among them.
-- Answers 200 are counted from BENCH_WARM_S after the start, for BENCH_SECONDS: see
-- wrk_says in bench/peers/slots.py.
local file = assert(io.open(os.getenv("BENCH_BODY"), "rb"))
wrk.method = "POST"
wrk.body = file:read("*all")
file:close()
for name, value in (os.getenv("BENCH_HEADERS") or ""):gmatch("([^:\n]+): ([^\n]+)") do
  wrk.headers[name] = value
end

local ffi = require("ffi")
ffi.cdef("typedef struct { long s; long ns; } bench_time; int clock_gettime(int, bench_time *);")
local moment = ffi.new("bench_time")
local function now()  -- seconds; os.clock() would be the CPU's
  ffi.C.clock_gettime(1, moment)
  return tonumber(moment.s) + tonumber(moment.ns) / 1e9
end

local seconds = tonumber(os.getenv("BENCH_SECONDS"))
local since
local thread_of_all
answered = 0

function setup(thread)
  thread_of_all = thread
end

function init()
  since = now() + tonumber(os.getenv("BENCH_WARM_S"))
end

function response(status)
  local past = now() - since
  if status == 200 and past >= 0 and past < seconds then
    answered = answered + 1
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\nJSON {"images_per_s": %.4f, "refused": %d, "broken": %d, ' ..
    '"p50_ms": %.3f, "p95_ms": %.3f, "p99_ms": %.3f}\n',
    thread_of_all:get("answered") / seconds, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3))
end
