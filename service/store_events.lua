-- What the job reports, applied to its run. The number within the attempt makes a line that arrives twice count once.

local MAX_WARNINGS = 20

local function check_no_gap(run, events)
  local last = tonumber(run.last_seq)
  local reached = last
  for _, event in ipairs(events) do
    if event.seq > reached + 1 then
      refuse({ error = "event_gap", run_id = run.id, attempt = tonumber(run.attempt), last_seq = last, seq = event.seq })
    end
    reached = math.max(reached, event.seq)
  end
end

-- `events` are of service/event_effects.py: what each changes is said there, once.
function OPERATIONS.apply_events(a)
  local run = find(a.run_id)
  check_held(run, a.attempt)
  check_no_gap(run, a.events)
  note_heard(run)
  local last, changes = tonumber(run.last_seq), {}
  local warnings = cjson.decode(run.warnings or "[]")
  for _, event in ipairs(a.events) do
    if event.seq > last then
      last = event.seq
      local stream = event.is_metric and KEY.metrics or KEY.events
      redis.call("XADD", stream(run.id), a.attempt .. "-" .. event.seq, "event", event.text)
      for field, value in pairs(event.changes) do changes[field] = value end
      if event.warning then warnings[#warnings + 1] = event.warning end
      if event.checkpoint then redis.call("HSET", KEY.checkpoints(run.id), event.checkpoint.path, event.checkpoint.text) end
      for _, path in ipairs(event.removed or {}) do redis.call("HDEL", KEY.checkpoints(run.id), path) end
      -- A run that is being cancelled already stays so.
      if event.started and run.status == "starting" then
        transition(run, "started", a.attempt, event.started)
        run = find(a.run_id)
      end
    end
  end
  if last > tonumber(run.last_seq) then
    while #warnings > MAX_WARNINGS do table.remove(warnings, 1) end
    if #warnings > 0 then changes.warnings = cjson.encode(warnings) end
    changes.last_seq, changes.updated_at = last, seconds(NOW)
    write(KEY.run(run.id), changes)
    redis.call("HINCRBY", KEY.run(run.id), "version", 1)
  end
  return { last_seq = last }
end
