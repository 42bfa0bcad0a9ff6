-- Reads, each of one moment; and the dispatch.

local function records(ids)
  local runs = {}
  for _, id in ipairs(ids) do runs[#runs + 1] = find(id) end
  return runs
end

-- Runs, with the workers beside them: why a queued run waits follows from both.
local function view(ids)
  local workers = {}
  for _, id in ipairs(redis.call("ZREVRANGE", KEY.workers, 0, -1)) do workers[#workers + 1] = hash(KEY.worker(id)) end
  return { runs = records(ids), workers = workers, now = NOW }
end

function OPERATIONS.get(a) return view({ a.run_id }) end

function OPERATIONS.workers(a) return view({}) end

-- Newest first; `below` is the submission number of the last run seen.
function OPERATIONS.list(a)
  local index = a.status and KEY.status(a.status) or KEY.runs
  local below = a.below and ("(" .. a.below) or "+inf"
  local ids = redis.call("ZREVRANGEBYSCORE", index, below, "-inf", "LIMIT", 0, a.limit + 1)
  local has_more = #ids > a.limit
  if has_more then ids[#ids] = nil end
  local page = view(ids)
  page.has_more = has_more
  return page
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
  return { entries = entries(KEY.history(a.run_id), "-", 10000) }
end

function OPERATIONS.metrics(a)
  find(a.run_id)
  local page = { entries = entries(KEY.metrics(a.run_id), a.after and ("(" .. a.after) or "-", a.limit + 1) }
  page.has_more = #page.entries > a.limit
  if page.has_more then page.entries[#page.entries] = nil end
  return page
end

function OPERATIONS.checkpoints(a)
  find(a.run_id)
  return { checkpoints = redis.call("HVALS", KEY.checkpoints(a.run_id)) }
end

function OPERATIONS.newest_attempt(a)
  local run = find(a.run_id)
  if a.at_least > tonumber(run.attempt) then refuse_lost(run, a.at_least) end
  return { attempt = tonumber(run.attempt) }
end

local done, reply = pcall(OPERATIONS[ARGV[1]], ARGUMENTS)
if not done and not (type(reply) == "table" and reply.error) then error(reply) end
return cjson.encode(reply)
