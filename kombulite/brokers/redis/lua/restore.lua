-- Puts messages back to the heads of their lists, those that are still leased. One that its list refuses (another type,
-- no right to it) keeps its lease.
-- KEYS: unacked hash, its index, then for each message its list.
-- ARGV: the latest score that a lease may have ('' for any, '-' where there is no lease), then for each message its
-- tag and its envelope; copies of one message for several lists follow one another. Returns how many were put back.
local latest, restored = ARGV[1], 0
local mine, previous, value, score
redis.pcall('ZREM', KEYS[2], '')
for i = 3, #KEYS do
    local tag, envelope = ARGV[2 * i - 4], ARGV[2 * i - 3]
    if latest == '-' then
        mine = true
    elseif tag ~= previous then
        mine, previous = false, tag
        score = redis.call('ZSCORE', KEYS[2], tag)
        if latest == '' or (score and tonumber(score) <= tonumber(latest)) then
            value = redis.call('HGET', KEYS[1], tag)
            redis.call('ZREM', KEYS[2], tag)
            mine = redis.call('HDEL', KEYS[1], tag) == 1
        end
    end
    if mine then
        local pushed = redis.pcall('RPUSH', KEYS[i], envelope)
        if type(pushed) ~= 'number' then
            if latest ~= '-' then
                redis.call('HSET', KEYS[1], tag, value)
                if score then redis.call('ZADD', KEYS[2], score, tag) end
            end
            return pushed
        end
        restored = restored + 1
    end
end
return restored
