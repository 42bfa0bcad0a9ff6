-- Reads, each of one moment.

local MAX_SCANNED = 20000

function OPERATIONS.get(a) return { runs = { find(a.run_id) } } end

-- Newest first; `below` is the submission number of the last run seen. `owner` and `labels` narrow: where few are wanted of very many, a
-- page may hold fewer than `limit`, and the next go on from there.
function OPERATIONS.list(a)
  local index = a.status and KEY.status(a.status) or KEY.runs
  local below, runs, has_more = a.below and ("(" .. a.below) or "+inf", {}, false
  local scanned, page, cursor = 0, a.limit + 1, nil
  while true do
    local ids = redis.call("ZREVRANGEBYSCORE", index, below, "-inf", "LIMIT", 0, page)
    for _, id in ipairs(ids) do
      if #runs == a.limit then has_more = true break end
      local owner, labels = unpack(redis.call("HMGET", KEY.run(id), "owner", "labels"))
      local wanted = not a.owner or owner == a.owner
      for name, value in pairs(a.labels or {}) do wanted = wanted and labels and cjson.decode(labels)[name] == value end
      if wanted then runs[#runs + 1] = find(id) end
      cursor = id
    end
    scanned = scanned + #ids
    if has_more or #ids < page then break end
    if scanned > MAX_SCANNED then has_more = true break end
    below, page = "(" .. redis.call("ZSCORE", index, cursor), 500
  end
  return { runs = list(runs), has_more = has_more, next_cursor = has_more and redis.call("HGET", KEY.run(cursor), "sequence") or nil }
end

local function worker_record(id)
  local worker = hash(KEY.worker(id))
  worker.lease = tonumber(redis.call("ZSCORE", KEY.leases, id) or 0)
  worker.owned = {}
  for owner, slots in pairs(owned_slots(worker)) do
    table.sort(slots)
    local run_id, number = split(owner)
    table.insert(worker.owned, { run_id = run_id, attempt = number, slots = slots })
    for _, slot in ipairs(slots) do worker["slot:" .. slot] = nil end
  end
  worker.owned = list(worker.owned)
  return worker
end

function OPERATIONS.workers(a)
  local workers = {}
  for _, id in ipairs(redis.call("ZREVRANGE", KEY.workers, 0, -1)) do workers[#workers + 1] = worker_record(id) end
  return { workers = list(workers), now = NOW }
end

local function entries(stream, after, limit)
  local found = {}
  for _, entry in ipairs(redis.call("XRANGE", stream, after, "+", "COUNT", limit)) do
    local fields = {}
    for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
    found[#found + 1] = { id = entry[1], fields = fields }
  end
  return found
end

function OPERATIONS.history(a)
  find(a.run_id)
  return { entries = list(entries(KEY.history(a.run_id), "-", 10000)) }
end

local PAGE_BYTES = 1048576

local function number(entry) return tonumber(entry.id:match("^0%-(%d+)$")) end

-- Those after the number `after`, oldest first. `truncated`: some of them are not kept any more, or the store has gone back to a time
-- before `after`, and they are told from the oldest again.
function OPERATIONS.events(a)
  local run, wanted = find(a.run_id), nil
  for _, kind in ipairs(a.kinds or {}) do
    wanted = wanted or {}
    wanted[kind] = true
  end
  local stream, after, count = KEY.events(run.id), a.after or "0", wanted and 2 * MAX_EVENTS or a.limit + 1
  local read = entries(stream, "(0-" .. after, count)
  local newest = redis.call("XREVRANGE", stream, "+", "-", "COUNT", 1)[1]
  local is_ahead = #read == 0 and newest and number({ id = newest[1] }) < tonumber(after)
  if is_ahead then read = entries(stream, "-", count) end
  local found, size, has_more = {}, 0, false
  for _, entry in ipairs(read) do
    if #found == a.limit or size > PAGE_BYTES then has_more = true break end
    if not wanted or wanted[entry.fields.kind] then
      found[#found + 1] = { id = entry.id:sub(3), fields = entry.fields }
      size = size + #entry.fields.data
    end
    after = entry.id:sub(3)
  end
  local truncated = is_ahead or (read[1] and number(read[1]) > tonumber(a.after or 0) + 1) or false
  return { entries = list(found), has_more = has_more, next_cursor = after, truncated = truncated, status = run.status }
end

function OPERATIONS.attempts(a)
  local run, attempts = find(a.run_id), {}
  for number = math.max(1, run.attempt - 99), tonumber(run.attempt) do
    attempts[#attempts + 1] = hash(KEY.attempt(run.id, number))
  end
  return { attempts = list(attempts) }
end

function OPERATIONS.checkpoints(a)
  find(a.run_id)
  return { checkpoints = list(redis.call("HVALS", KEY.checkpoints(a.run_id))), pins = list(redis.call("SMEMBERS", KEY.pins(a.run_id))) }
end

function OPERATIONS.newest_attempt(a)
  local run = find(a.run_id)
  if a.at_least > tonumber(run.attempt) then refuse_lost(run, a.at_least) end
  return { attempt = tonumber(run.attempt), status = run.status, owner = run.owner }
end

function OPERATIONS.counts(a)
  local counts = {}
  for _, status in ipairs(a.statuses) do counts[status] = redis.call("ZCARD", KEY.status(status)) end
  local oldest = redis.call("ZRANGE", KEY.status("queued"), 0, 0)[1]
  local images_per_second = 0
  for _, id in ipairs(a.statuses[1] and redis.call("ZRANGE", KEY.status("running"), 0, -1) or {}) do
    local progress = redis.call("HGET", KEY.run(id), "progress")
    if progress then images_per_second = images_per_second + cjson.decode(progress).images_per_second end
  end
  return {
    counts = counts,
    outcomes = hash(KEY.outcomes),
    oldest_queued_at = oldest and tonumber(redis.call("HGET", KEY.run(oldest), "queued_at")) or nil,
    images_per_second = images_per_second,
    now = NOW,
  }
end

function OPERATIONS.throughput(a)
  return { images_per_second = tonumber(redis.call("HGET", KEY.throughput, a.key) or nil) }
end

local WAITING = {
  "id", "owner", "priority", "sequence", "queued_at", "shapes", "device", "max_seconds", "storage", "checkpoint_step", "parent", "avoid",
}
local HOLDING = {
  "id", "owner", "priority", "ends_at", "deadline", "status", "attempt", "stopped_for", "preemptions", "retries_preemptions",
}

local function holding(id)
  local run, values = {}, redis.call("HMGET", KEY.run(id), unpack(HOLDING))
  for i, name in ipairs(HOLDING) do run[name] = values[i] or nil end
  run.placed_at = redis.call("HGET", KEY.attempt(id, run.attempt), "placed_at")
  return run
end

local SCANNED = 200

-- What the scheduler decides from. Of a very long queue the best of each owner and the oldest of all, so that one owner's flood hides
-- nobody else's runs. With `holder`, only the one API process that holds the scheduler's lease gets an answer.
function OPERATIONS.snapshot(a)
  if a.holder then
    local holder = redis.call("GET", KEY.scheduler)
    if holder and holder ~= a.holder then return {} end
    redis.call("SET", KEY.scheduler, a.holder, "PX", 3000)
  end
  local workers, live, queued, seen, ending, usage = {}, {}, {}, {}, {}, {}
  for _, id in ipairs(redis.call("ZRANGE", KEY.workers, 0, -1)) do
    local worker = worker_record(id)
    for _, held in ipairs(worker.owned) do
      if not seen[held.run_id] then
        seen[held.run_id] = true
        live[#live + 1] = holding(held.run_id)
      end
      ending[held.run_id] = ending[held.run_id] or worker.lease > NOW
    end
    workers[#workers + 1] = worker
  end
  local owners = redis.call("SMEMBERS", KEY.owners)
  local each = math.max(20, math.floor(a.limit / math.max(1, #owners)))
  local taken = {}
  local function take(id)
    if not taken[id] and not ending[id] then -- its last attempt's processes are not known to be gone everywhere
      taken[id] = true
      queued[#queued + 1] = redis.call("HMGET", KEY.run(id), unpack(WAITING)) -- rows: named fields took a third of the call
    end
  end
  for _, owner in ipairs(owners) do
    for _, id in ipairs(redis.call("ZRANGE", KEY.queue(owner), 0, each - 1)) do take(id) end
    usage[owner] = redis.call("HGET", KEY.usage, owner) or nil
  end
  for _, id in ipairs(redis.call("ZRANGE", KEY.status("queued"), 0, SCANNED - 1)) do take(id) end
  if a.holder then -- and another stretch with each call, so that what cannot start hides nothing behind it for ever
    local from = tonumber(redis.call("GET", KEY.scan) or SCANNED)
    local page = redis.call("ZRANGE", KEY.status("queued"), from, from + SCANNED - 1)
    for _, id in ipairs(page) do take(id) end
    redis.call("SET", KEY.scan, #page == SCANNED and from + SCANNED or SCANNED)
  end
  return { now = NOW, workers = list(workers), live = list(live), columns = WAITING, queued = list(queued), usage = usage }
end
