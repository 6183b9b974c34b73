-- Puts messages back to the heads of their lists, those that are still leased. If one of its lists refuses a message
-- (another type, no right to it), none of them has it, and it keeps its lease; the others go back all the same.
-- KEYS: unacked hash, its index, then for each message its list.
-- ARGV: the latest score that a lease may have ('' for any, '-' where there is no lease), then for each message its
-- tag and its envelope; copies of one message for several lists follow one another.
-- Returns how many were put back; if a list refused one, then an error, and the places of all that were refused.
local latest, restored, failure, refused = ARGV[1], 0, nil, {}
if latest == '-' then
    redis.pcall('ZREM', KEYS[2], '')
else  -- a user without the right to remove leases puts nothing back: it would come again and again
    redis.call('ZREM', KEYS[2], '')
    redis.call('HDEL', KEYS[1], '')
end

local function is_due(tag)
    if latest == '' then return true end
    local score = redis.call('ZSCORE', KEYS[2], tag)
    return score and tonumber(score) <= tonumber(latest)
end

local function push(first, last)
    for i = first, last do
        local pushed = redis.pcall('RPUSH', KEYS[i], ARGV[2 * i - 3])
        if type(pushed) ~= 'number' then
            failure = pushed
            for other = first, i - 1 do redis.pcall('RPOP', KEYS[other]) end
            for place = first, last do refused[#refused + 1] = place - 3 end
            return false
        end
    end
    restored = restored + last - first + 1
    return true
end

local first = 3
while first <= #KEYS do
    local tag, last = ARGV[2 * first - 4], first
    while last < #KEYS and ARGV[2 * last - 2] == tag do last = last + 1 end
    if latest == '-' then
        push(first, last)
    elseif is_due(tag) and (not redis.call('HGET', KEYS[1], tag) or push(first, last)) then
        redis.call('ZREM', KEYS[2], tag)
        redis.call('HDEL', KEYS[1], tag)
    end
    first = last + 1
end
if not failure then return {restored} end
local reply = {restored, failure}
for i = 1, #refused do reply[i + 2] = refused[i] end
return reply
