-- The keys, the one door to a run's status, and what the other parts share.
--
-- Redis runs one script at a time, so each call is atomic. service/redis_script.py puts TARGETS (event -> status before -> status
-- after), LIVE, STOPPING and TERMINAL, all from service/lifecycle.py, and NEWS, a channel, before this text, and the other store_*.lua after it. A call is
-- EVALSHA with an operation's name and its arguments as JSON; the answer is JSON too. One server, no cluster: scripts build the names
-- of their keys.

local ARGUMENTS = cjson.decode(ARGV[2])
local TIME = redis.call("TIME")
local NOW = tonumber(TIME[1]) + tonumber(TIME[2]) / 1e6 -- Unix seconds; one clock for all API processes
local OPERATIONS = {}

-- The keys. No other file names one.
local KEY = {
  sequence = "millionway:sequence", -- counts submissions
  runs = "millionway:runs", -- run ids by submission
  owners = "millionway:owners", -- set: who has queued runs
  leases = "millionway:leases", -- worker ids by the time at which their lease expires
  workers = "millionway:workers", -- worker ids by the time at which they were last heard of
  unheld = "millionway:unheld", -- "RUN/ATTEMPT" of gangs that not all workers hold yet, by placing time
  watched = "millionway:watched", -- when the leases were last looked at
  scheduler = "millionway:scheduler", -- which API process places runs, for some seconds
  scan = "millionway:scan", -- how far the scheduler has looked through the queued runs
  usage = "millionway:usage", -- hash: owner -> "SLOT-SECONDS TIME", decayed
  throughput = "millionway:throughput", -- hash: what is trained on what -> images/s of a rank
  outcomes = "millionway:outcomes", -- hash: how attempts ended -> how many
  keys = "millionway:keys", -- hash: SHA-256 of an API key -> Key
}
function KEY.status(status) return "millionway:status:" .. status end -- run ids by submission
function KEY.queue(owner) return "millionway:queue:" .. owner end -- queued run ids, the best first
function KEY.run(id) return "millionway:run:" .. id end -- hash: the record
function KEY.attempt(id, number) return "millionway:attempt:" .. id .. ":" .. number end -- hash
function KEY.history(id) return "millionway:history:" .. id end -- stream: transitions
function KEY.events(id) return "millionway:events:" .. id end -- stream: transitions and what the job reports
function KEY.series(id) return "millionway:series:" .. id end -- hash: the curves, in buckets
function KEY.checkpoints(id) return "millionway:checkpoints:" .. id end -- hash: path -> Checkpoint
function KEY.pins(id) return "millionway:pins:" .. id end -- set: steps
function KEY.worker(id) return "millionway:worker:" .. id end -- hash; field slot:I -> "RUN/ATTEMPT"
function KEY.idempotency(owner, key) return "millionway:idempotency:" .. owner .. ":" .. key end -- {run_id, digest}, for a day

local DAY = 86400
local AVOID_SECONDS = 3600 -- how long a run avoids a worker that failed it
local MAX_HISTORY, MAX_EVENTS, MAX_EVENTS_ENDED = 2000, 1000, 200

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
  if #flat > 0 then redis.call("HSET", key, unpack(flat)) end
end

local function seconds(time) return string.format("%.3f", time) end

local function list(of) return #of > 0 and of or cjson.empty_array or of end

local function find(id)
  local run = hash(KEY.run(id))
  if not run.id then refuse({ error = "run_not_found", run_id = id }) end
  return run
end

local function publish(topic) redis.call("PUBLISH", NEWS, topic) end

local function refuse_lost(run, attempt)
  refuse({ error = "attempt_lost", run_id = run.id, attempt = attempt, current = tonumber(run.attempt), status = run.status })
end

local function is_held(run, attempt) return attempt == tonumber(run.attempt) and LIVE[run.status] end

-- The attempt number is the fencing token of every report by a worker.
local function check_held(run, attempt)
  if not is_held(run, attempt) then refuse_lost(run, attempt) end
end

-- Of the queue: higher priority first, then the earlier submission. 2^40 submissions fit between two priorities.
local function rank_in_queue(run) return -run.priority * 1099511627776 + run.sequence end

local function enqueue(run)
  redis.call("ZADD", KEY.queue(run.owner), rank_in_queue(run), run.id)
  redis.call("SADD", KEY.owners, run.owner)
  publish("queue")
end

local function dequeue(run)
  redis.call("ZREM", KEY.queue(run.owner), run.id)
  if redis.call("EXISTS", KEY.queue(run.owner)) == 0 then redis.call("SREM", KEY.owners, run.owner) end
end

-- An event. "0-*" numbers them from 1 without gaps: a reader sees whether any were dropped before it came.
local function tell(run_id, kind, attempt, data)
  redis.call(
    "XADD", KEY.events(run_id), "MAXLEN", "~", MAX_EVENTS, "0-*", "time", seconds(NOW), "kind", kind, "attempt", attempt, "data", data
  )
end

local function remember(run, event, status, attempt, reason)
  local entry = { time = tonumber(seconds(NOW)), event = event, status = status, attempt = tonumber(attempt), reason = reason }
  redis.call(
    "XADD", KEY.history(run.id), "MAXLEN", "~", MAX_HISTORY, "*",
    "time", seconds(NOW), "event", event, "status", status, "attempt", attempt, "reason", reason
  )
  tell(run.id, "transition", attempt, cjson.encode(entry))
end

-- The one door to a run's status. `changes` are further fields of the record; `run` is brought up to date.
local function transition(run, event, reason, changes)
  local before, after = run.status, TARGETS[event][run.status]
  if not after then refuse({ error = "transition_refused", run_id = run.id, status = before, event = event }) end
  changes = changes or {}
  changes.status, changes.reason, changes.updated_at = after, reason, seconds(NOW)
  changes.version = run.version + 1
  if TERMINAL[after] then changes.finished_at = seconds(NOW) end
  if after == "cancelled" then changes.termination_reason = "cancelled" end
  if after == "queued" then changes.queued_at = seconds(NOW) end
  for name, value in pairs(changes) do run[name] = tostring(value) end
  write(KEY.run(run.id), changes)

  redis.call("ZREM", KEY.status(before), run.id)
  redis.call("ZADD", KEY.status(after), run.sequence, run.id)
  if before == "queued" then dequeue(run) end
  if after == "queued" then enqueue(run) end
  if LIVE[before] and not LIVE[after] then redis.call("HDEL", KEY.run(run.id), "phase", "ends_at", "deadline") end
  remember(run, event, after, run.attempt, reason)
  if TERMINAL[after] then redis.call("XTRIM", KEY.events(run.id), "MAXLEN", "~", MAX_EVENTS_ENDED) end
  publish(run.id)
end

local function owned_slots(worker)
  local owned = {} -- "RUN/ATTEMPT" -> slots
  for name, owner in pairs(worker) do
    local slot = name:match("^slot:(%d+)$")
    if slot then
      owned[owner] = owned[owner] or {}
      table.insert(owned[owner], tonumber(slot))
    end
  end
  return owned
end

local function free_slots(worker_id, owner)
  for _, slot in ipairs(owned_slots(hash(KEY.worker(worker_id)))[owner] or {}) do
    redis.call("HDEL", KEY.worker(worker_id), "slot:" .. slot)
  end
  publish("queue")
end

local function split(owner)
  local id, number = owner:match("^(.+)/(%d+)$")
  return id, tonumber(number)
end

-- What follows the end of the attempt, if another one does.
local function resumption(run)
  if run.status == "pausing" or run.status == "cancelling" then return "" end
  local from = run.checkpoint_step and ("resumes from step " .. run.checkpoint_step) or "starts from the beginning"
  return string.format("; attempt %d %s", run.attempt + 1, from)
end

-- Slots of the owner for so long; slot-seconds are halved each day. The clock may have been set back meanwhile.
local function charge(owner, num_slots, placed_at)
  local value, since = (redis.call("HGET", KEY.usage, owner) or "0 0"):match("^(%S+) (%S+)$")
  local left = tonumber(value) * 2 ^ (-math.max(0, NOW - tonumber(since)) / DAY)
  redis.call("HSET", KEY.usage, owner, string.format("%.3f %.3f", left + num_slots * math.max(0, NOW - placed_at), NOW))
end

-- The attempt that holds the run is over: its workers learn it with their next poll and kill what is left of it.
local function end_attempt(run, event, reason, changes)
  local key = KEY.attempt(run.id, run.attempt)
  local attempt = hash(key)
  local num_slots = 0
  for _, member in ipairs(cjson.decode(attempt.members)) do
    num_slots = num_slots + #member.slots
    publish("worker:" .. member.worker)
  end
  charge(run.owner, num_slots, attempt.placed_at)
  write(key, { ended_at = seconds(NOW), outcome = event, reason = reason })
  redis.call("HINCRBY", KEY.outcomes, event, 1)
  redis.call("ZREM", KEY.unheld, run.id .. "/" .. run.attempt)
  transition(run, event, reason, changes)
end

-- The attempt failed, by an error of its own (crashed) or of the infrastructure (lost). Another one follows while the budget lasts.
-- `worker` is who failed it: the next attempt goes elsewhere if it can.
local function lose(run, event, cause, worker, signature)
  local budget = event == "lost" and "infrastructure" or "crashes"
  local failures = run["failed_" .. budget] + 1
  local changes = { ["failed_" .. budget] = failures }
  local step = run.step or "0"
  if worker then
    local avoid = cjson.decode(run.avoid or "{}")
    avoid[worker] = NOW + AVOID_SECONDS
    changes.avoid = cjson.encode(avoid)
  end
  local reason
  if signature and run.signature == signature and run.signature_step == step then
    event, changes.termination_reason = "exhausted", "repeated_error"
    reason = string.format("%s; the same error came at the same step (%s) before, so another attempt would meet it again", cause, step)
  elseif failures > tonumber(run["retries_" .. budget]) then
    event, changes.termination_reason = "exhausted", budget .. "_exhausted"
    reason = string.format(
      "%s; %d attempts failed so since the last checkpoint, and retries.%s allows %s more", cause, failures, budget,
      run["retries_" .. budget]
    )
  else
    reason = cause .. resumption(run)
  end
  if signature then changes.signature, changes.signature_step = signature, step end
  if run.status == "cancelling" then reason = cause end
  end_attempt(run, event, reason, changes)
end
