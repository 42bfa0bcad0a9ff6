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

-- A checkpoint beyond all earlier ones is progress: the retries count anew.
local function note_checkpoint(run, event, changes)
  local kept, progress = cjson.decode(event.checkpoint.text), changes.progress or run.progress
  kept.loss = progress and cjson.decode(progress).loss or cjson.null
  redis.call("HSET", KEY.checkpoints(run.id), event.checkpoint.path, cjson.encode(kept))
  if event.checkpoint.step > tonumber(run.checkpoint_step or -1) then
    changes.failed_infrastructure, changes.failed_crashes = 0, 0
  end
  for _, path in ipairs(event.removed or {}) do redis.call("HDEL", KEY.checkpoints(run.id), path) end
end

-- `events` are of service/event_effects.py: what each changes is said there, once.
function OPERATIONS.apply_events(a)
  local run = find(a.run_id)
  check_held(run, a.attempt)
  check_no_gap(run, a.events)
  local last, changes = tonumber(run.last_seq), {}
  local warnings = cjson.decode(run.warnings or "[]")
  for _, event in ipairs(a.events) do
    if event.seq > last then
      last = event.seq
      tell(run.id, event.kind, a.attempt, event.text)
      for field, value in pairs(event.changes) do changes[field] = value end
      if event.straggler then -- the rank has a node, and the node a name
        local attempt = hash(KEY.attempt(run.id, a.attempt))
        local member = cjson.decode(attempt.members)[math.floor(event.straggler / attempt.ranks_per_node) + 1]
        event.warning = string.format("%s (worker %s)", event.warning, member and member.worker or "unknown")
      end
      if event.warning then warnings[#warnings + 1] = event.warning end
      if event.checkpoint then note_checkpoint(run, event, changes) end
      if event.start_step then
        forget_points_after(run.id, event.start_step)
        write(KEY.attempt(run.id, a.attempt), { started_at = seconds(NOW), start_step = event.start_step })
      end
      if event.point then
        record_point(run.id, event.point.step, event.point.values)
        if event.point.values.images_per_second then
          local each = event.point.values.images_per_second / tonumber(run.ranks)
          redis.call("HSET", KEY.throughput, run.throughput_key, string.format("%.3f", each))
        end
      end
      if event.started and run.status == "starting" then transition(run, "started", event.started) end
    end
  end
  if last > tonumber(run.last_seq) then
    while #warnings > MAX_WARNINGS do table.remove(warnings, 1) end
    if #warnings > 0 then changes.warnings = cjson.encode(warnings) end
    changes.last_seq, changes.updated_at, changes.version = last, seconds(NOW), run.version + 1
    write(KEY.run(run.id), changes)
    publish(run.id)
  end
  return { last_seq = last }
end
