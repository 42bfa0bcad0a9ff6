-- What people and the scheduler do to a run.

local function checkpoint(run, step)
  for _, text in ipairs(redis.call("HVALS", KEY.checkpoints(run.id))) do
    if cjson.decode(text).step == step then return text end
  end
  refuse({ error = "checkpoint_not_found", run_id = run.id, step = step })
end

-- The workers write it where the job looks before it removes a checkpoint.
local function pin(run, step, pinned)
  redis.call(pinned and "SADD" or "SREM", KEY.pins(run.id), step)
  redis.call("HINCRBY", KEY.run(run.id), "version", 1)
  for _, worker in ipairs(cjson.decode(run.workers or "[]")) do publish("worker:" .. worker) end
  publish(run.id)
end

function OPERATIONS.submit(a)
  local run = a.fields
  if a.key then
    local earlier = redis.call("GET", KEY.idempotency(run.owner, a.key))
    if earlier then
      earlier = cjson.decode(earlier)
      if earlier.digest ~= a.digest then refuse({ error = "idempotency_conflict", key = a.key }) end
      return { run = find(earlier.run_id) }
    end
  end
  local queued = redis.call("ZCARD", KEY.queue(run.owner))
  if queued >= a.max_queued then refuse({ error = "queue_full", owner = run.owner, queued = queued, limit = a.max_queued }) end
  if redis.call("EXISTS", KEY.run(run.id)) == 1 then refuse({ error = "run_id_taken", run_id = run.id }) end
  if a.pin then -- the checkpoint that the run is forked from must still be there when it starts
    local parent = find(a.pin.run_id)
    checkpoint(parent, a.pin.step)
    run.storage = parent.storage
    pin(parent, a.pin.step, true)
  end
  if a.key then
    redis.call("SET", KEY.idempotency(run.owner, a.key), cjson.encode({ run_id = run.id, digest = a.digest }), "EX", DAY)
  end
  local sequence = redis.call("INCR", KEY.sequence)
  run.status, run.reason, run.version, run.sequence, run.edits = "queued", "", 1, sequence, 0
  run.attempt, run.last_seq, run.failed_infrastructure, run.failed_crashes, run.preemptions = 0, 0, 0, 0, 0
  run.created_at, run.updated_at, run.queued_at = seconds(NOW), seconds(NOW), seconds(NOW)
  write(KEY.run(run.id), run)
  for _, index in ipairs({ KEY.runs, KEY.status("queued") }) do redis.call("ZADD", index, sequence, run.id) end
  enqueue(run)
  remember(run, "submit", "queued", 0, "submitted by " .. run.owner)
  return { run = run }
end

-- pause, resume, cancel, kill: once or more often.
function OPERATIONS.request(a)
  local run = find(a.run_id)
  local status = run.status
  if a.request == "pause" then
    if status ~= "pausing" and status ~= "paused" then transition(run, "pause", "paused on request") end
  elseif a.request == "resume" then
    if not TARGETS.pause[status] then transition(run, "resume", "resumed on request") end
  else
    local is_kill = a.request == "kill"
    local is_asked = status == "cancelled" or status == "cancelling" and (run.kill == "1" or not is_kill)
    local reason = is_kill and "killed on request" or "cancelled on request"
    if not is_asked then transition(run, "cancel", reason, { kill = is_kill and "1" or nil }) end
  end
  for _, worker in ipairs(cjson.decode(run.workers or "[]")) do publish("worker:" .. worker) end
  return {}
end

function OPERATIONS.edit(a)
  local run = find(a.run_id)
  if a.expected and a.expected ~= tonumber(run.edits) then
    refuse({ error = "edit_conflict", run_id = run.id, expected = a.expected, current = tonumber(run.edits) })
  end
  local changes = { edits = run.edits + 1, version = run.version + 1, updated_at = seconds(NOW) }
  if a.priority then changes.priority, run.priority = a.priority, a.priority end
  if a.labels then
    local labels = cjson.decode(run.labels or "{}")
    for name, value in pairs(a.labels) do labels[name] = value ~= cjson.null and value or nil end
    changes.labels = cjson.encode(labels)
  end
  write(KEY.run(run.id), changes)
  if run.status == "queued" then enqueue(run) end
  publish(run.id)
  return {}
end

-- A whole gang or nothing. What has changed since the scheduler looked makes it nothing.
function OPERATIONS.place(a)
  local run = find(a.run_id)
  if run.status ~= "queued" then return { placed = false } end
  local last = hash(KEY.attempt(run.id, run.attempt))
  for _, member in ipairs(cjson.decode(last.members or "[]")) do
    local heard = tonumber(redis.call("ZSCORE", KEY.leases, member.worker) or 0) > NOW
    if heard and owned_slots(hash(KEY.worker(member.worker)))[run.id .. "/" .. run.attempt] then return { placed = false } end
  end
  for _, member in ipairs(a.members) do
    local worker = hash(KEY.worker(member.worker))
    local lease = tonumber(redis.call("ZSCORE", KEY.leases, member.worker) or 0)
    if lease <= NOW or worker.drain ~= "" or worker.leaving == "1" then return { placed = false } end
    for _, slot in ipairs(member.slots) do
      if worker["slot:" .. slot] or slot >= tonumber(worker.slots) then return { placed = false } end
    end
    member.host, member.address, member.storage = worker.host, worker.address, worker.storage
  end
  local attempt, names = run.attempt + 1, {}
  for _, member in ipairs(a.members) do
    names[#names + 1] = member.worker
    for _, slot in ipairs(member.slots) do redis.call("HSET", KEY.worker(member.worker), "slot:" .. slot, run.id .. "/" .. attempt) end
    publish("worker:" .. member.worker)
  end
  write(KEY.attempt(run.id, attempt), {
    number = attempt, members = cjson.encode(a.members), ranks_per_node = a.ranks_per_node, placed_at = seconds(NOW),
  })
  redis.call("ZADD", KEY.unheld, NOW, run.id .. "/" .. attempt)
  local changes = {
    attempt = attempt, workers = cjson.encode(names), ranks = #names * a.ranks_per_node, last_seq = 0, storage = a.members[1].storage,
    started_at = run.started_at or seconds(NOW), stopped_for = "",
  }
  if run.max_seconds then changes.deadline = seconds(NOW + run.max_seconds) end
  local where = #names == 1 and ("worker " .. names[1] .. " on " .. a.members[1].host) or (#names .. " workers: " .. table.concat(names, ", "))
  transition(run, "place", string.format("attempt %d is placed on %s", attempt, where), changes)
  return { placed = true, attempt = attempt }
end

-- The scheduler has a run give way: checkpoint, and back to the queue.
function OPERATIONS.stop(a)
  local run = find(a.run_id)
  if not TARGETS.preempt[run.status] then return { stopping = false } end
  local changes = { stopped_for = a.in_favour_of or "" }
  if a.cause == "preempted" then changes.preemptions = run.preemptions + 1 end
  transition(run, "preempt", a.reason, changes)
  for _, worker in ipairs(cjson.decode(run.workers)) do publish("worker:" .. worker) end
  return { stopping = true }
end

function OPERATIONS.pin(a)
  local run = find(a.run_id)
  local found = checkpoint(run, a.step)
  pin(run, a.step, a.pinned)
  return { checkpoint = found }
end
