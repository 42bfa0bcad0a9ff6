-- Every change of a run happens here, atomically: Redis runs one script at a time.
--
-- service/redis_script.py puts TARGETS (event -> status before -> status after), LIVE and TERMINAL, all from
-- service/lifecycle.py, before this text, and store_events.lua and store_reads.lua after it. A call is EVALSHA with an operation's name and its
-- arguments as JSON; the answer is JSON too. One server, no cluster: scripts build the names of their keys.

local ARGUMENTS = cjson.decode(ARGV[2])
local TIME = redis.call("TIME")
local NOW = tonumber(TIME[1]) + tonumber(TIME[2]) / 1e6 -- Unix seconds; one clock for all API processes
local OPERATIONS = {}

-- The keys. No other file names one.
local KEY = {
  sequence = "millionway:sequence", -- counts submissions
  runs = "millionway:runs", -- run ids by submission
  queue = "millionway:queue", -- queued run ids by submission: one that is queued again keeps its place
  leases = "millionway:leases", -- run ids by the time at which their lease expires
  workers = "millionway:workers", -- worker ids by the time at which they were last heard of
  watched = "millionway:watched", -- when the leases were last looked at
}
function KEY.status(status) return "millionway:status:" .. status end -- run ids by submission
function KEY.run(id) return "millionway:run:" .. id end -- hash: the record
function KEY.history(id) return "millionway:history:" .. id end -- stream: transitions
function KEY.events(id) return "millionway:events:" .. id end -- stream, ids attempt-seq: what the job reported
function KEY.metrics(id) return "millionway:metrics:" .. id end -- as events: progress and evaluations
function KEY.checkpoints(id) return "millionway:checkpoints:" .. id end -- hash: path -> Checkpoint
function KEY.worker(id) return "millionway:worker:" .. id end -- hash
function KEY.idempotency(key) return "millionway:idempotency:" .. key end -- {run_id, digest}, for a day

local DAY = 86400
local MAX_UNHEARD = 3 -- attempts of a run without a sign of life that are not counted as failures

-- Ends the call with one of the errors of service/errors.py. Only before the first write.
local function refuse(problem) error(problem) end

local function hash(key)
  local flat, fields = redis.call("HGETALL", key), {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end

local function write(key, fields)
  local flat = {}
  for name, value in pairs(fields) do
    flat[#flat + 1] = name
    flat[#flat + 1] = tostring(value)
  end
  redis.call("HSET", key, unpack(flat))
end

local function seconds(time) return string.format("%.3f", time) end

local function find(id)
  local run = hash(KEY.run(id))
  if not run.id then refuse({ error = "run_not_found", run_id = id }) end
  return run
end

local function refuse_lost(run, attempt)
  refuse({ error = "attempt_lost", run_id = run.id, attempt = attempt, current = tonumber(run.attempt), status = run.status })
end

-- The attempt number is the fencing token of every report by a worker.
local function check_held(run, attempt)
  if attempt ~= tonumber(run.attempt) or not LIVE[run.status] then refuse_lost(run, attempt) end
end

-- A sign of life of the attempt that holds the run: its worker got the answer to its claim.
local function note_heard(run)
  if run.heard ~= run.attempt then redis.call("HSET", KEY.run(run.id), "heard", run.attempt) end
end

local function renew(id) redis.call("ZADD", KEY.leases, NOW + ARGUMENTS.lease_seconds, id) end

local function remember(run, event, status, attempt, reason)
  redis.call("XADD", KEY.history(run.id), "*", "time", seconds(NOW), "event", event, "status", status, "attempt", attempt, "reason", reason)
end

-- The one door to a run's status. `attempt` fences a worker's report; nil where the control plane or a person acts.
-- `changes` are further fields of the record.
local function transition(run, event, attempt, reason, changes)
  if attempt then check_held(run, attempt) end
  local before, after = run.status, TARGETS[event][run.status]
  if not after then refuse({ error = "transition_refused", run_id = run.id, status = before, event = event }) end
  changes = changes or {}
  changes.status, changes.reason, changes.updated_at = after, reason, seconds(NOW)
  if TERMINAL[after] then changes.finished_at = seconds(NOW) end
  write(KEY.run(run.id), changes)
  redis.call("HINCRBY", KEY.run(run.id), "version", 1)

  redis.call("ZREM", KEY.status(before), run.id)
  redis.call("ZADD", KEY.status(after), run.sequence, run.id)
  if after == "queued" then redis.call("ZADD", KEY.queue, run.sequence, run.id) else redis.call("ZREM", KEY.queue, run.id) end
  if LIVE[after] and not LIVE[before] then renew(run.id) end
  if LIVE[before] and not LIVE[after] then
    redis.call("ZREM", KEY.leases, run.id)
    redis.call("HDEL", KEY.run(run.id), "phase")
    redis.call("HDEL", KEY.worker(run.worker), "run")
  end
  remember(run, event, after, changes.attempt or run.attempt, reason)
end

local function resumption(run)
  local from = run.checkpoint_step and ("resumes from step " .. run.checkpoint_step) or "starts from the beginning"
  return string.format("; attempt %d %s", run.attempt + 1, from)
end

-- An attempt failed: another one follows, unless resources.max_attempts have failed. Attempts that a stopping worker gave
-- back are not among `failures`.
local function lose(run, event, attempt, cause)
  if attempt then check_held(run, attempt) end
  local failures = run.failures + 1
  local reason = cause
  if run.status ~= "cancelling" and failures >= tonumber(run.max_attempts) then
    event = "exhausted"
    reason = string.format("%s; %d failed of the %s attempts that resources.max_attempts allows", cause, failures, run.max_attempts)
  elseif run.status ~= "cancelling" then
    reason = cause .. resumption(run)
  end
  transition(run, event, attempt, reason, { failures = failures })
end

function OPERATIONS.submit(a)
  if a.key then
    local earlier = redis.call("GET", KEY.idempotency(a.key))
    if earlier then
      earlier = cjson.decode(earlier)
      if earlier.digest ~= a.digest then refuse({ error = "idempotency_conflict", key = a.key }) end
      return { run_id = earlier.run_id }
    end
    redis.call("SET", KEY.idempotency(a.key), cjson.encode({ run_id = a.fields.id, digest = a.digest }), "EX", DAY)
  end
  local run, sequence = a.fields, redis.call("INCR", KEY.sequence)
  assert(redis.call("EXISTS", KEY.run(run.id)) == 0, "this run id is taken")
  run.status, run.reason, run.version, run.sequence = "queued", "", 1, sequence
  run.attempt, run.failures, run.last_seq = 0, 0, 0
  run.created_at, run.updated_at = seconds(NOW), seconds(NOW)
  write(KEY.run(run.id), run)
  for _, index in ipairs({ KEY.runs, KEY.queue, KEY.status("queued") }) do redis.call("ZADD", index, sequence, run.id) end
  remember(run, "submit", "queued", 0, "submitted")
  return { run_id = run.id }
end

local function fits(run, worker)
  return run.nodes == "1" and tonumber(run.ranks_per_node) <= worker.slots and (run.device ~= "cuda" or worker.cuda)
end

-- A worker runs one job at a time, so one that asks for work has none: it never got our last answer, or was restarted.
local function take_back(run, worker)
  local unheard = run.status == "starting" and run.heard ~= run.attempt
  if unheard and redis.call("HINCRBY", KEY.run(run.id), "unheard", 1) <= MAX_UNHEARD then
    transition(run, "released", nil, string.format("worker %s asks again: the answer to its claim was lost", worker) .. resumption(run))
  else
    lose(run, "lease_expired", nil, string.format("worker %s asks for work without having finished this run", worker))
  end
end

-- The oldest queued run that fits the worker, or {}.
function OPERATIONS.claim(a)
  local key = KEY.worker(a.worker)
  redis.call("ZADD", KEY.workers, NOW, a.worker)
  write(key, { id = a.worker, host = a.host, slots = a.slots, device = a.device, last_seen = seconds(NOW) })
  local held = redis.call("HGET", key, "run")
  if held then take_back(find(held), a.worker) end
  for _, id in ipairs(redis.call("ZRANGE", KEY.queue, 0, -1)) do
    local run = find(id)
    if fits(run, a) then
      local attempt = run.attempt + 1
      local changes = { attempt = attempt, worker = a.worker, last_seq = 0, started_at = run.started_at or seconds(NOW) }
      transition(run, "claim", nil, string.format("worker %s on %s starts attempt %d", a.worker, a.host, attempt), changes)
      redis.call("HSET", key, "run", id)
      return { run_id = id, attempt = attempt, spec = run.spec }
    end
  end
  return {}
end

function OPERATIONS.heartbeat(a)
  local run = find(a.run_id)
  check_held(run, a.attempt)
  renew(run.id)
  note_heard(run)
  if redis.call("EXISTS", KEY.worker(run.worker)) == 1 then
    redis.call("ZADD", KEY.workers, NOW, run.worker)
    redis.call("HSET", KEY.worker(run.worker), "last_seen", seconds(NOW))
  end
  return { command = run.status == "cancelling" and "stop" or "continue" }
end

-- The worker's last word on an attempt. It has read what the job said of its failure, so its reason is the cause.
function OPERATIONS.exit(a)
  local run = find(a.run_id)
  if a.event == "crashed" then
    lose(run, a.event, a.attempt, a.reason)
  elseif a.event == "released" and run.status ~= "cancelling" then
    transition(run, a.event, a.attempt, a.reason .. resumption(run))
  else
    transition(run, a.event, a.attempt, a.reason)
  end
  return {}
end

function OPERATIONS.cancel(a)
  local run = find(a.run_id)
  if run.status ~= "cancelling" and run.status ~= "cancelled" then transition(run, "cancel", nil, "cancelled on request") end
  return {}
end

-- Runs whose worker was not heard of. A hundred a call, so that no call is long; the next follows within a second.
-- Workers renew only through the control plane: when nobody looked for half a lease, it was away, and every lease first
-- gets a full period.
function OPERATIONS.expire_leases(a)
  local watched = tonumber(redis.call("GET", KEY.watched))
  redis.call("SET", KEY.watched, seconds(NOW))
  if not watched or NOW - watched > a.lease_seconds / 2 then
    for _, id in ipairs(redis.call("ZRANGE", KEY.leases, 0, -1)) do renew(id) end
    return { run_ids = {} }
  end
  local expired = redis.call("ZRANGEBYSCORE", KEY.leases, "-inf", NOW, "LIMIT", 0, 100)
  for _, id in ipairs(expired) do
    local run = find(id)
    lose(run, "lease_expired", nil, string.format("worker %s was not heard of for %g s", run.worker, a.lease_seconds))
  end
  for _, id in ipairs(redis.call("ZRANGEBYSCORE", KEY.workers, "-inf", NOW - DAY)) do
    if redis.call("HEXISTS", KEY.worker(id), "run") == 0 then
      redis.call("DEL", KEY.worker(id))
      redis.call("ZREM", KEY.workers, id)
    end
  end
  return { run_ids = expired }
end
