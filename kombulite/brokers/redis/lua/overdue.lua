-- Finds leases that ran out, the oldest first, if nobody else is at it. If there are none, the mutex is free again: a
-- process that dies right afterwards keeps no other from looking.
-- KEYS: unacked hash, its index, mutex. ARGV: token, its life in ms, timeout in s, how many to skip, how many at most,
-- the client's time, for a user without the right to TIME.
-- Returns the latest score that has run out, then for each lease its tag, score and value; nil where somebody is.
redis.pcall('ZREM', KEYS[2], '')
if redis.call('GET', KEYS[3]) ~= ARGV[1] and not redis.call('SET', KEYS[3], ARGV[1], 'NX', 'PX', ARGV[2]) then
    return false
end
local time = redis.pcall('TIME')
local now = time.err and ARGV[6] or time[1] + time[2] / 1000000
local latest = string.format('%.6f', now - ARGV[3])
local found = redis.call('ZRANGE', KEYS[2], '-inf', latest, 'BYSCORE', 'LIMIT', ARGV[4], ARGV[5], 'WITHSCORES')
if #found == 0 and ARGV[4] == '0' then redis.call('DEL', KEYS[3]) end
local reply = {latest}
for i = 1, #found, 2 do
    reply[#reply + 1] = found[i]
    reply[#reply + 1] = found[i + 1]
    reply[#reply + 1] = redis.call('HGET', KEYS[1], found[i])
end
return reply
