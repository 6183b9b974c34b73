-- Takes messages from lists and notes who has them. Nothing is popped unless it can be noted: a wrong type at one of
-- the lease keys fails first, as does a user without the right to acknowledge, and a full memory refuses no more then.
-- What a user without the right to note it has popped goes back.
-- KEYS: unacked hash, its index, then the lists: for each priority step those of all queues.
-- ARGV: 1 to lease, 0 to take for good; how many (at most 1,000: Lua passes on no more at a time; 0: none, to ask
-- whether it would be allowed); 1 for turns among the queues, 0 for one after the other; the number of queues; what all
-- tags start with; the number in the first tag; the client's time, for a user without the right to TIME; and for each
-- queue the end of its lease values.
-- Returns pairs: the place of a list among the KEYS that follow the first two, the messages from it.
local lease, left, turns, queues = ARGV[1] == '1', tonumber(ARGV[2]), ARGV[3] == '1', tonumber(ARGV[4])
local prefix, number = ARGV[5], tonumber(ARGV[6])
local unacked, index = KEYS[1], KEYS[2]
local fields, scores, size, reply = {}, {}, 0, {}
local byte = string.byte
local now, failure
if lease then
    redis.call('HDEL', unacked, '')
    redis.call('ZREM', index, '')
    local time = redis.pcall('TIME')
    now = time.err and ARGV[7] or time[1] .. '.' .. string.format('%06d', time[2])
end

if left < 1 then  -- the question whether its user may take messages at all
    local probe = redis.pcall('RPOP', KEYS[3], 0)
    if probe and probe.err and not string.find(probe.err, 'WRONGTYPE', 1, true) then return probe end
end

local function take(place, count)
    local found = redis.pcall('RPOP', KEYS[place + 2], count)
    if not found then return end
    if found.err then
        if not string.find(found.err, 'WRONGTYPE', 1, true) then failure = found end
        return
    end
    reply[#reply + 1] = place
    reply[#reply + 1] = found
    left = left - #found
    if lease then
        local ending = ARGV[8 + (place - 1) % queues]
        for i = 1, #found do
            local envelope, tag = found[i], prefix .. number
            number = number + 1
            if byte(envelope, 1) ~= 123 or byte(envelope, -1) ~= 125 then envelope = cjson.encode(envelope) end
            fields[size + 1], fields[size + 2] = tag, '[' .. envelope .. ending
            scores[size + 1], scores[size + 2] = now, tag
            size = size + 2
        end
    end
end

for first = 1, #KEYS - 2, queues do
    if left < 1 then break end
    if turns and queues > 1 and left > 1 then
        local waiting, places, total = {}, {}, 0
        for place = first, first + queues - 1 do
            local length = redis.pcall('LLEN', KEYS[place + 2])
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
if size > 0 then
    local noted = redis.pcall('HSET', unacked, unpack(fields))
    if type(noted) == 'number' then noted = redis.pcall('ZADD', index, unpack(scores)) end
    if type(noted) ~= 'number' then  -- the user has no right to one of them
        for i = #reply, 2, -2 do
            for j = #reply[i], 1, -1 do redis.call('RPUSH', KEYS[reply[i - 1] + 2], reply[i][j]) end
        end
        for i = 1, size, 2 do redis.pcall('HDEL', unacked, fields[i]) end
        return noted
    end
end
if failure and #reply == 0 then return failure end
return reply
