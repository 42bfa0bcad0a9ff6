-- What workers say: what they hold, and how an attempt ended on a node. And what their silence means.

local function pins(run_id)
  local steps = {}
  for _, step in ipairs(redis.call("SMEMBERS", KEY.pins(run_id))) do steps[#steps + 1] = tonumber(step) end
  return list(steps)
end

-- The node rank of a worker within an attempt, from 0; nil where it is no member.
local function node_of(attempt, worker)
  for node, member in ipairs(cjson.decode(attempt.members or "[]")) do
    if member.worker == worker then return node - 1, member end
  end
end

-- The worker has no process of the attempt any more, and did not say how they ended.
local function let_go(worker_id, owner, node)
  free_slots(worker_id, owner)
  redis.call("HSET", KEY.attempt(split(owner)), "state:" .. node, "gone")
end

local function offer(run, attempt, node, member)
  local members = cjson.decode(attempt.members)
  return {
    run_id = run.id, attempt = tonumber(run.attempt), spec = run.spec, node_rank = node, num_nodes = #members,
    ranks_per_node = tonumber(attempt.ranks_per_node), slots = member.slots, master_address = members[1].address,
    master_port = tonumber(attempt.master_port), pins = pins(run.id), parent = run.parent,
  }
end

local function instruction(run)
  if run.status == "cancelling" then return run.kill == "1" and "kill" or "stop" end
  return STOPPING[run.status] and "stop" or "continue"
end

-- What is known of an attempt on one of its nodes. Once all nodes have taken it, or ended it already, the gang is not waited for.
local function set_state(run, attempt, node, state)
  redis.call("HSET", KEY.attempt(run.id, attempt.number), "state:" .. node, state)
  attempt["state:" .. node] = state
  for other = 0, #cjson.decode(attempt.members) - 1 do
    if not attempt["state:" .. other] then return end
  end
  redis.call("ZREM", KEY.unheld, run.id .. "/" .. attempt.number)
end

-- The worker holds this part of the attempt now.
local function accept(run, attempt, node, held)
  local key = KEY.attempt(run.id, run.attempt)
  if not attempt["state:" .. node] then set_state(run, attempt, node, "held") end
  if node == 0 and held.master_port and not attempt.master_port then
    redis.call("HSET", key, "master_port", held.master_port)
    for _, member in ipairs(cjson.decode(attempt.members)) do publish("worker:" .. member.worker) end
  end
end

-- A process of this name polls that is not the one we know.
local function replace(worker, a)
  local lease = tonumber(redis.call("ZSCORE", KEY.leases, a.worker) or 0)
  for former in (worker.former or ""):gmatch("%x+") do
    if former == a.incarnation then refuse({ error = "worker_replaced", worker = a.worker, host = worker.host }) end
  end
  if lease > NOW and worker.host ~= a.host then refuse({ error = "worker_name_taken", worker = a.worker, host = worker.host }) end
  for owner in pairs(owned_slots(worker)) do
    local id, number = split(owner)
    local run = hash(KEY.run(id))
    let_go(a.worker, owner, node_of(hash(KEY.attempt(id, number)), a.worker)) -- it has killed what its predecessor left
    -- Also what the predecessor had not taken yet: a late report of its must not end what the successor executes.
    if is_held(run, number) then lose(run, "lost", string.format("worker %s was started anew", a.worker)) end
  end
  redis.call("HSET", KEY.worker(a.worker), "former", ((worker.former or "") .. " " .. worker.incarnation):sub(-170))
end

-- A worker says what it holds and learns what to do. `number` orders the polls of one process.
function OPERATIONS.poll(a)
  local key = KEY.worker(a.worker)
  local worker = hash(key)
  local is_new = worker.incarnation ~= a.incarnation
  if worker.incarnation and is_new then replace(worker, a) end
  redis.call("ZADD", KEY.workers, NOW, a.worker)
  local is_back = redis.call("ZADD", KEY.leases, NOW + a.lease_seconds, a.worker) == 1
  local is_late = not is_new and a.number < tonumber(worker.number or 0)
  if is_late then return { offers = list({}), instructions = list({}), late = true } end
  write(key, {
    id = a.worker, incarnation = a.incarnation, number = a.number, host = a.host, address = a.address, slots = a.slots,
    device = a.device, cuda = a.cuda and "1" or "0", shared = a.shared and "1" or "0", storage = a.storage,
    leaving = a.leaving and "1" or "0", drain = worker.drain or "", last_seen = seconds(NOW),
  })
  if is_back or worker.leaving ~= (a.leaving and "1" or "0") then publish("queue") end

  local held, offers, instructions = {}, {}, {}
  for _, one in ipairs(a.held) do held[one.run_id .. "/" .. one.attempt] = one end
  for owner in pairs(owned_slots(hash(key))) do
    local id, number = split(owner)
    local run, attempt = hash(KEY.run(id)), hash(KEY.attempt(id, number))
    local node, member = node_of(attempt, a.worker)
    local mine = held[owner]
    if not is_held(run, number) then
      if not mine then let_go(a.worker, owner, node) end
    elseif mine then
      accept(run, attempt, node, mine)
    elseif attempt["state:" .. node] then
      let_go(a.worker, owner, node)
      lose(run, "lost", string.format("worker %s has no process of it any more", a.worker), a.worker)
    elseif STOPPING[run.status] then -- nothing is lost: it trains only once all have taken it
      end_attempt(run, "stopped", string.format("worker %s had not taken it yet", a.worker) .. resumption(run))
      free_slots(a.worker, owner)
    elseif a.leaving then
      end_attempt(run, "released", string.format("worker %s stops and does not take it", a.worker) .. resumption(run))
      free_slots(a.worker, owner)
    elseif node == 0 or attempt.master_port then
      offers[#offers + 1] = offer(run, attempt, node, member)
    end
  end
  local owned = owned_slots(hash(key))
  for owner in pairs(held) do
    local id, number = split(owner)
    local run = hash(KEY.run(id))
    local told = { run_id = id, attempt = number, command = "abort", pins = pins(id) }
    if owned[owner] and is_held(run, number) then
      told.command = instruction(run)
    else
      told.collect_stacks = redis.call("HGET", KEY.attempt(id, number), "stalled") == "1"
    end
    instructions[#instructions + 1] = told
  end
  return { offers = list(offers), instructions = list(instructions) }
end

-- A node's last word on an attempt. Failures end it everywhere at once; a clean end is the lead's to decide. What the others say after
-- that is kept, and counts where it names the true cause.
function OPERATIONS.exit(a)
  local run = find(a.run_id)
  local key = KEY.attempt(a.run_id, a.attempt)
  local attempt = hash(key)
  local node = node_of(attempt, a.worker)
  if not node then refuse_lost(run, a.attempt) end
  if attempt["exit:" .. node] then return {} end
  redis.call("HSET", key, "exit:" .. node, cjson.encode({ exit_code = a.exit_code, reason = a.reason, log_tail = a.log_tail }))
  set_state(run, attempt, node, a.outcome)
  if a.stalled then redis.call("HSET", key, "stalled", "1") end
  free_slots(a.worker, a.run_id .. "/" .. a.attempt)
  if not is_held(run, a.attempt) then
    local may_name_cause = a.outcome == "faulty" and a.attempt == tonumber(run.attempt) and TARGETS.faulty[run.status]
    if may_name_cause then transition(run, "faulty", a.reason, { termination_reason = "faulty" }) end
    return {}
  end
  if a.outcome == "crashed" or a.outcome == "lost" then
    lose(run, a.outcome, a.reason, a.worker, a.signature)
  elseif a.outcome == "faulty" then
    end_attempt(run, "faulty", a.reason, { termination_reason = "faulty" })
  elseif node == 0 and a.outcome == "finished" then
    end_attempt(run, "finished", a.reason, { termination_reason = "finished" })
  elseif node == 0 then
    local event = STOPPING[run.status] and "stopped" or "released"
    end_attempt(run, event, a.reason .. resumption(run))
  end
  return {}
end

-- Workers that were not heard of, and gangs that not all workers took. A hundred a call, so that no call is long; the next follows
-- within a second. Workers renew only through the control plane: when nobody looked for half a lease, it was away, and every lease
-- first gets a full period. So too when the clock was set back: what was noted before would end too late.
function OPERATIONS.expire(a)
  local watched = tonumber(redis.call("GET", KEY.watched))
  redis.call("SET", KEY.watched, seconds(NOW))
  if not watched or math.abs(NOW - watched) > a.lease_seconds / 2 then
    for _, id in ipairs(redis.call("ZRANGE", KEY.leases, 0, -1)) do redis.call("ZADD", KEY.leases, NOW + a.lease_seconds, id) end
    for _, owner in ipairs(redis.call("ZRANGE", KEY.unheld, 0, -1)) do redis.call("ZADD", KEY.unheld, NOW, owner) end
    return { lost = list({}), workers = list({}) }
  end
  local lost, silent = {}, redis.call("ZRANGEBYSCORE", KEY.leases, "-inf", NOW, "LIMIT", 0, 100)
  for _, id in ipairs(silent) do
    redis.call("ZREM", KEY.leases, id)
    for owner in pairs(owned_slots(hash(KEY.worker(id)))) do
      local run_id, number = split(owner)
      local run = hash(KEY.run(run_id))
      if is_held(run, number) then
        local node = node_of(hash(KEY.attempt(run_id, number)), id)
        redis.call("HSET", KEY.attempt(run_id, number), "state:" .. node, "gone")
        lose(run, "lost", string.format("worker %s was not heard of for %g s", id, a.lease_seconds), id)
        lost[#lost + 1] = run_id
      end
    end
  end
  for _, owner in ipairs(redis.call("ZRANGEBYSCORE", KEY.unheld, "-inf", NOW - a.gang_start_seconds, "LIMIT", 0, 100)) do
    local id, number = split(owner)
    local run, attempt = hash(KEY.run(id)), hash(KEY.attempt(id, number))
    redis.call("ZREM", KEY.unheld, owner)
    if is_held(run, number) then
      local missing = {}
      for node, member in ipairs(cjson.decode(attempt.members)) do
        if not attempt["state:" .. (node - 1)] then missing[#missing + 1] = member.worker end
      end
      local cause = string.format("%s did not take it within %g s", table.concat(missing, ", "), a.gang_start_seconds)
      lose(run, "lost", cause, missing[1])
      lost[#lost + 1] = id
    end
  end
  for _, id in ipairs(redis.call("ZRANGEBYSCORE", KEY.workers, "-inf", NOW - DAY, "LIMIT", 0, 100)) do
    if not redis.call("ZSCORE", KEY.leases, id) then -- else it holds runs: the control plane was away for the day
      redis.call("DEL", KEY.worker(id))
      redis.call("ZREM", KEY.workers, id)
    end
  end
  return { lost = list(lost), workers = list(silent) }
end

function OPERATIONS.drain(a)
  local worker = hash(KEY.worker(a.worker))
  if not worker.id then refuse({ error = "worker_not_found", worker = a.worker }) end
  redis.call("HSET", KEY.worker(a.worker), "drain", a.mode)
  publish("queue")
  return {}
end
