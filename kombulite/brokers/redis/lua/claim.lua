-- Takes messages from lists and notes who has them. Nothing is popped unless it can be noted: a wrong type at one of
-- the lease keys fails first, as does a user without the right to acknowledge, and a full memory refuses no more then.
-- Whether its user may note messages is asked of the server (Redis 7 and later), each time: rights may be taken away
-- from consumers. Where that cannot be asked, or the answer is no, and once for each consumer, a note is written, if
-- only for the moment: an error then names the right.
-- KEYS: unacked hash and its index, of all queues or of each; then the lists: for each priority step those of all queues.
-- ARGV: 1 to lease, 0 to take for good; how many (at most 1,000: Lua passes on no more at a time; 0: none, to ask
-- whether it would be allowed); 1 for turns among the queues, 0 for one after the other; the number of queues; that of
-- hashes, 1 or as many; what all tags start with; the number in the first tag; the client's time, for a user without the
-- right to TIME; and for each queue the end of its lease values.
-- Returns pairs: the place of a list among the lists, the messages from it; then 0 and an error, if there are several
-- hashes, and not all queues could be asked.
local lease, left, turns, queues = ARGV[1] == '1', tonumber(ARGV[2]), ARGV[3] == '1', tonumber(ARGV[4])
local tables, prefix, number = tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
local lists = 2 * tables
local fields, scores, reply = {}, {}, {}
local byte = string.byte
local now, failure
if lease then
    local time = redis.pcall('TIME')
    now = time.err and ARGV[8] or time[1] .. '.' .. string.format('%06d', time[2])
    local may = redis.acl_check_cmd
    for t = 1, tables do
        local hash, index = KEYS[2 * t - 1], KEYS[2 * t]
        redis.call('HDEL', hash, '')
        redis.call('ZREM', index, '')
        if left < 1 or not (may and may('HSET', hash, '', '') and may('ZADD', index, now, '')) then
            redis.call('ZADD', index, 'XX', now, '')
            redis.call('HSET', hash, '', '')
            redis.call('HDEL', hash, '')
        end
    end
end

if left < 1 then  -- the question whether its user may take messages at all
    local probe = redis.pcall('RPOP', KEYS[lists + 1], 0)
    if probe and probe.err and not string.find(probe.err, 'WRONGTYPE', 1, true) then return probe end
end

local function table_of(place)
    return tables == 1 and 1 or (place - 1) % queues + 1
end

local function take(place, count)
    local found = redis.pcall('RPOP', KEYS[place + lists], count)
    if not found then return end
    if found.err then
        if not string.find(found.err, 'WRONGTYPE', 1, true) then failure = found end
        return
    end
    reply[#reply + 1] = place
    reply[#reply + 1] = found
    left = left - #found
    if lease then
        local ending, t = ARGV[9 + (place - 1) % queues], table_of(place)
        local noted, dated = fields[t] or {}, scores[t] or {}
        local size = #noted
        fields[t], scores[t] = noted, dated
        for i = 1, #found do
            local envelope, tag = found[i], prefix .. number
            number = number + 1
            if byte(envelope, 1) ~= 123 or byte(envelope, -1) ~= 125 then envelope = cjson.encode(envelope) end
            noted[size + 1], noted[size + 2] = tag, '[' .. envelope .. ending
            dated[size + 1], dated[size + 2] = now, tag
            size = size + 2
        end
    end
end

for first = 1, #KEYS - lists, queues do
    if left < 1 then break end
    if turns and queues > 1 and left > 1 then
        local waiting, places, total = {}, {}, 0
        for place = first, first + queues - 1 do
            local length = redis.pcall('LLEN', KEYS[place + lists])
            if type(length) == 'number' and length > 0 then
                places[#places + 1] = place
                waiting[place] = length
                total = total + length
            elseif type(length) == 'table' and not string.find(length.err, 'WRONGTYPE', 1, true) then
                failure = length
            end
        end
        local share, open = {}, places
        local rest = math.min(left, total)
        for _, place in ipairs(places) do share[place] = 0 end
        while rest > 0 do
            local each, still = math.floor(rest / #open), {}
            if each == 0 then
                for i = 1, rest do share[open[i]] = share[open[i]] + 1 end
                break
            end
            for _, place in ipairs(open) do
                local more = math.min(each, waiting[place] - share[place])
                share[place] = share[place] + more
                rest = rest - more
                if share[place] < waiting[place] then still[#still + 1] = place end
            end
            open = still
        end
        for _, place in ipairs(places) do
            if share[place] > 0 then take(place, share[place]) end
        end
    else
        for place = first, first + queues - 1 do
            if left < 1 then break end
            take(place, left)
        end
    end
end
for t, noted in pairs(fields) do
    redis.call('HSET', KEYS[2 * t - 1], unpack(noted))
    redis.call('ZADD', KEYS[2 * t], unpack(scores[t]))
end
if failure and #reply == 0 then return failure end
if failure and tables > 1 then
    reply[#reply + 1] = 0
    reply[#reply + 1] = failure
end
return reply
