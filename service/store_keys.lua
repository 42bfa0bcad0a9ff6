-- API keys: who may ask. Only hashes of their secrets are here.

function OPERATIONS.key_create(a)
  redis.call("HSETNX", KEY.keys, a.sha256, a.record)
  return {}
end

-- The first keys of all; `known`: whether these are keys here now.
function OPERATIONS.key_create_first(a)
  if redis.call("HLEN", KEY.keys) == 0 then
    for _, key in ipairs(a.keys) do redis.call("HSET", KEY.keys, key.sha256, key.record) end
  end
  local known = true
  for _, key in ipairs(a.keys) do known = known and redis.call("HEXISTS", KEY.keys, key.sha256) == 1 end
  return { known = known }
end

function OPERATIONS.key_find(a)
  return { record = redis.call("HGET", KEY.keys, a.sha256) or nil }
end

function OPERATIONS.key_list(a)
  return { records = list(redis.call("HVALS", KEY.keys)) }
end

function OPERATIONS.key_revoke(a)
  local flat = redis.call("HGETALL", KEY.keys)
  for i = 1, #flat, 2 do
    local record = cjson.decode(flat[i + 1])
    if record.id == a.id then
      record.revoked_at = record.revoked_at ~= cjson.null and record.revoked_at or NOW
      redis.call("HSET", KEY.keys, flat[i], cjson.encode(record))
      return { record = cjson.encode(record) }
    end
  end
  refuse({ error = "key_not_found", key_id = a.id })
end
