-- The end of the script: the call itself.

local done, reply = pcall(OPERATIONS[ARGV[1]], ARGUMENTS)
if not done and not (type(reply) == "table" and reply.error) then error(reply) end
return cjson.encode(reply)
