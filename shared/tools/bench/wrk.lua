-- What wrk is told, by its arguments: BODY_BYTES of the request, 0 for GET. What it found goes out
-- as one line of JSON: its own report has no p99.9.

function init(arguments)
  local size = tonumber(arguments[1])
  if size > 0 then
    wrk.method = "POST"
    wrk.body = string.rep("x", size)
  end
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'BENCH {"requests": %d, "requests_per_second": %.1f, "p50_seconds": %.6f,'
      .. ' "p99_seconds": %.6f, "p999_seconds": %.6f, "errors": {"connect": %d,'
      .. ' "read": %d, "write": %d, "timeout": %d, "status": %d}}\n',
    summary.requests, summary.requests / summary.duration * 1e6,
    latency:percentile(50) / 1e6, latency:percentile(99) / 1e6, latency:percentile(99.9) / 1e6,
    errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
