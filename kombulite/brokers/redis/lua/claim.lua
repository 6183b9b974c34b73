-- Takes messages from lists and notes who has them. Nothing is popped unless it can be noted: a wrong type at one of
-- the lease keys fails first, as does a user without the right to acknowledge, and a full memory refuses no more then.
-- Whether its user may note messages is asked together with whether it may take them: that is written, if only for the
-- moment. If the right to it is taken away later, what was popped goes back, if the user may put it there.
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
    for t = 1, tables do
        redis.call('HDEL', KEYS[2 * t - 1], '')
        redis.call('ZREM', KEYS[2 * t], '')
    end
    local time = redis.pcall('TIME')
    now = time.err and ARGV[8] or time[1] .. '.' .. string.format('%06d', time[2])
end

if left < 1 then  -- the question whether its user may take and note messages at all
    for t = 1, lease and tables or 0 do
        redis.call('ZADD', KEYS[2 * t], 'XX', now, '')
        redis.call('HSET', KEYS[2 * t - 1], '', '')
        redis.call('HDEL', KEYS[2 * t - 1], '')
    end
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
    local done = redis.pcall('HSET', KEYS[2 * t - 1], unpack(noted))
    if type(done) == 'number' then done = redis.pcall('ZADD', KEYS[2 * t], unpack(scores[t])) end
    if type(done) ~= 'number' then  -- the user has no right to one of them
        local is_back = true
        for i = #reply, 2, -2 do
            if table_of(reply[i - 1]) == t then
                for j = #reply[i], 1, -1 do
                    local pushed = redis.pcall('RPUSH', KEYS[reply[i - 1] + lists], reply[i][j])
                    is_back = is_back and type(pushed) == 'number'
                end
                table.remove(reply, i)
                table.remove(reply, i - 1)
            end
        end
        for i = 1, is_back and #noted or 0, 2 do redis.pcall('HDEL', KEYS[2 * t - 1], noted[i]) end
        failure = done
    end
end
if failure and #reply == 0 then return failure end
if failure and tables > 1 then
    reply[#reply + 1] = 0
    reply[#reply + 1] = failure
end
return reply
