-- The curves of a run: at most MAX_BUCKETS buckets of equal width in steps, each with what a plot needs. When the run outgrows them,
-- two neighbours become one, so that a run of any length stays small and keeps its extremes.
--
-- A bucket is a JSON object: name of the series -> {first step, last step, minimum, maximum, sum, count, last value}.

local MAX_BUCKETS = 512
local FIRST, LAST, MIN, MAX, SUM, COUNT, VALUE = 1, 2, 3, 4, 5, 6, 7

-- Seven digits, as many as fp32 has; and no sum of such values can leave the range of numbers.
local function rounded(value) return tonumber(string.format("%.7g", math.max(-1e300, math.min(1e300, value)))) end

-- `right` follows `left`.
local function joined(left, right)
  return {
    left[FIRST], right[LAST], math.min(left[MIN], right[MIN]), math.max(left[MAX], right[MAX]), left[SUM] + right[SUM],
    left[COUNT] + right[COUNT], right[VALUE],
  }
end

-- Two buckets become one, until `step` has one.
local function widen(key, width, step)
  local flat, buckets = redis.call("HGETALL", key), {}
  for i = 1, #flat, 2 do
    if flat[i] ~= "width" then buckets[tonumber(flat[i])] = cjson.decode(flat[i + 1]) end
  end
  while math.floor(step / width) >= MAX_BUCKETS do
    width = width * 2
    local wider = {}
    for index = 0, MAX_BUCKETS - 1 do -- in order of the steps
      local into = wider[math.floor(index / 2)] or {}
      for name, one in pairs(buckets[index] or {}) do into[name] = into[name] and joined(into[name], one) or one end
      if next(into) then wider[math.floor(index / 2)] = into end
    end
    buckets = wider
  end
  redis.call("DEL", key)
  for index, bucket in pairs(buckets) do redis.call("HSET", key, index, cjson.encode(bucket)) end
  return width
end

-- One report: `values` by the name of the series. A step that its bucket has seen is no news: an attempt that resumes reports the steps
-- after its checkpoint again, with the same values.
local function record_point(run_id, step, values)
  local key = KEY.series(run_id)
  local width = tonumber(redis.call("HGET", key, "width") or 1)
  if math.floor(step / width) >= MAX_BUCKETS then width = widen(key, width, step) end
  local index = math.floor(step / width)
  local bucket = cjson.decode(redis.call("HGET", key, index) or "{}")
  for name, value in pairs(values) do
    local one, seen = rounded(value), bucket[name]
    local point = { step, step, one, one, one, 1, one }
    if not seen then
      bucket[name] = point
    elseif step > seen[LAST] then
      bucket[name] = joined(seen, point)
    end
  end
  redis.call("HSET", key, "width", width, index, cjson.encode(bucket))
end

-- What comes after the step that an attempt starts from will be reported again: the buckets after its own are dropped.
local function forget_points_after(run_id, step)
  local key = KEY.series(run_id)
  local width = tonumber(redis.call("HGET", key, "width") or 1)
  for index = math.floor(step / width) + 1, MAX_BUCKETS - 1 do redis.call("HDEL", key, index) end
end

function OPERATIONS.series(a)
  find(a.run_id)
  local buckets, flat = {}, redis.call("HGETALL", KEY.series(a.run_id))
  for i = 1, #flat, 2 do
    if flat[i] ~= "width" then buckets[#buckets + 1] = { tonumber(flat[i]), flat[i + 1] } end
  end
  table.sort(buckets, function(left, right) return left[1] < right[1] end)
  for i, bucket in ipairs(buckets) do buckets[i] = bucket[2] end
  return { buckets = list(buckets) }
end
