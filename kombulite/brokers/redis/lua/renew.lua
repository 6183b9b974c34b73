-- Gives leases their full time again, those that are still there. KEYS: index. ARGV: tags.
redis.call('ZREM', KEYS[1], '')
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
local scores = {}
for i, tag in ipairs(ARGV) do
    scores[2 * i - 1] = now
    scores[2 * i] = tag
end
return redis.call('ZADD', KEYS[1], 'XX', unpack(scores))
