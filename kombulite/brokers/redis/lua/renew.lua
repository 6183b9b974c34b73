-- Gives leases their full time again, those that are still there. KEYS: index.
-- ARGV: the client's time, for a user without the right to TIME; then tags.
redis.pcall('ZREM', KEYS[1], '')
local time = redis.pcall('TIME')
local now = time.err and ARGV[1] or time[1] .. '.' .. string.format('%06d', time[2])
local scores = {}
for i = 2, #ARGV do
    scores[2 * i - 3] = now
    scores[2 * i - 2] = ARGV[i]
end
return redis.call('ZADD', KEYS[1], 'XX', unpack(scores))
