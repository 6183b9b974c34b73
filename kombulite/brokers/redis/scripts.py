"""What the server does in one step: scripts in Lua (Redis: EVALSHA, and EVAL for a server that has forgotten them).

All keys come as KEYS, with the key prefix in place. Times are the server's own (TIME), in seconds.

If memory is full, a server refuses a command that may need more, unless the script has written before. Scripts that
keep or free what is there must not be refused, so they begin with a write that is always allowed, and changes nothing:
they remove the member '' from a set that has none.
"""

from __future__ import annotations

from hashlib import sha1


class Script:
    """A script and its digest."""

    def __init__(self, source: str) -> None:
        self.source = source.strip()
        self.sha = sha1(self.source.encode(), usedforsecurity=False).hexdigest()


#: Takes messages from lists and notes who has them. Nothing is popped unless it can be noted: a wrong type at one of
#: the lease keys fails first, and once something is popped a full memory refuses no more. What a user without the
#: right to note it has popped goes back.
#: KEYS: unacked hash, its index, then the lists: for each priority step those of all queues.
#: ARGV: 1 to lease, 0 to take for good; how many (at most 1,000: Lua passes on no more at a time); 1 for turns among
#: the queues, 0 for one after the other; the number of queues; what all tags start with; the number in the first tag;
#: and for each queue the end of its lease values.
#: Returns pairs: the place of a list among the KEYS that follow the first two, the messages from it.
CLAIM = Script("""
local lease, left, turns, queues = ARGV[1] == '1', tonumber(ARGV[2]), ARGV[3] == '1', tonumber(ARGV[4])
local prefix, number = ARGV[5], tonumber(ARGV[6])
local unacked, index = KEYS[1], KEYS[2]
local fields, scores, size, reply = {}, {}, 0, {}
local byte = string.byte
local now, failure
if lease then
    redis.call('HLEN', unacked)
    redis.call('ZCARD', index)
    local time = redis.call('TIME')
    now = time[1] .. '.' .. string.format('%06d', time[2])
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
        local ending = ARGV[7 + (place - 1) % queues]
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
""")

#: Puts messages back to the heads of their lists, those that are still leased.
#: KEYS: unacked hash, its index, then for each message its list.
#: ARGV: the latest score that a lease may have ('' for any, '-' where there is no lease), then for each message its
#: tag and its envelope; copies of one message for several lists follow one another. Returns how many were put back.
RESTORE = Script("""
local latest, restored = ARGV[1], 0
local mine, previous
redis.pcall('ZREM', KEYS[2], '')
for i = 3, #KEYS do
    local tag, envelope = ARGV[2 * i - 4], ARGV[2 * i - 3]
    if latest == '-' then
        mine = true
    elseif tag ~= previous then
        mine, previous = false, tag
        local score = redis.call('ZSCORE', KEYS[2], tag)
        if latest == '' or (score and tonumber(score) <= tonumber(latest)) then
            redis.call('ZREM', KEYS[2], tag)
            mine = redis.call('HDEL', KEYS[1], tag) == 1
        end
    end
    if mine then
        redis.call('RPUSH', KEYS[i], envelope)
        restored = restored + 1
    end
end
return restored
""")

#: Moves one element that is no message to the dead letters.
#: KEYS: unacked hash, its index, the list of dead letters. ARGV: tag ('' where it is not leased), element.
#: Returns 1 unless it was leased and is not any more.
BURY = Script("""
redis.pcall('ZREM', KEYS[2], ARGV[1])
local mine = ARGV[1] == '' and 1 or redis.call('HDEL', KEYS[1], ARGV[1])
if mine == 1 then redis.call('LPUSH', KEYS[3], ARGV[2]) end
return mine
""")

#: Gives leases their full time again, those that are still there. KEYS: index. ARGV: tags.
RENEW = Script("""
redis.call('ZREM', KEYS[1], '')
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
local scores = {}
for i, tag in ipairs(ARGV) do
    scores[2 * i - 1] = now
    scores[2 * i] = tag
end
return redis.call('ZADD', KEYS[1], 'XX', unpack(scores))
""")

#: Finds leases that ran out, the oldest first, if nobody else is at it. If there are none, the mutex is free again: a
#: process that dies right afterwards keeps no other from looking.
#: KEYS: unacked hash, its index, mutex. ARGV: token, its life in ms, timeout in s, how many to skip, how many at most.
#: Returns the latest score that has run out, then for each lease its tag, score and value; nil where somebody is.
OVERDUE = Script("""
redis.pcall('ZREM', KEYS[2], '')
if redis.call('GET', KEYS[3]) ~= ARGV[1] and not redis.call('SET', KEYS[3], ARGV[1], 'NX', 'PX', ARGV[2]) then
    return false
end
local time = redis.call('TIME')
local latest = string.format('%.6f', time[1] + time[2] / 1000000 - ARGV[3])
local found = redis.call('ZRANGE', KEYS[2], '-inf', latest, 'BYSCORE', 'LIMIT', ARGV[4], ARGV[5], 'WITHSCORES')
if #found == 0 and ARGV[4] == '0' then redis.call('DEL', KEYS[3]) end
local reply = {latest}
for i = 1, #found, 2 do
    reply[#reply + 1] = found[i]
    reply[#reply + 1] = found[i + 1]
    reply[#reply + 1] = redis.call('HGET', KEYS[1], found[i])
end
return reply
""")

#: Gives a mutex back if it is still ours. KEYS: mutex. ARGV: token.
UNLOCK = Script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
""")

#: Deletes a queue. KEYS: how it was declared (which not everybody may touch), its lists, then binding tables.
#: ARGV: number of lists, 1 if only an empty one, then for each table a member to remove.
#: Returns the messages gone with it, -1 for one that is not empty.
DELETE_QUEUE = Script("""
local lists, count = tonumber(ARGV[1]), 0
for i = 1, lists do count = count + redis.call('LLEN', KEYS[i]) end
if ARGV[2] == '1' and count > 0 then return -1 end
for i = 1, lists do redis.call('DEL', KEYS[i]) end
for i = lists + 1, #KEYS do redis.call('SREM', KEYS[i], ARGV[i - lists + 2]) end
return count
""")

#: Binds a queue for good. KEYS: binding table, the one of permanent bindings. ARGV: member.
BIND = Script("""
redis.call('SREM', KEYS[1], '')
redis.call('SADD', KEYS[1], ARGV[1])
return redis.call('SADD', KEYS[2], ARGV[1])
""")

#: Binds a queue that expires. KEYS: binding table, deadlines. ARGV: member, exchange, lifetime in ms.
BIND_EXPIRING = Script("""
redis.call('ZREM', KEYS[2], '')
local time = redis.call('TIME')
redis.call('SADD', KEYS[1], ARGV[1])
return redis.call('ZADD', KEYS[2], 'GT', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3], ARGV[2])
""")

#: Deletes what an entry names that has ended, unless somebody has extended it.
#: KEYS: the sorted set of entries, keys to delete, binding sets. ARGV: entry, now in ms, number of keys to delete,
#: member to remove from the binding sets. Returns 1 if it had ended.
SWEEP = Script("""
local ends, deleted = redis.call('ZSCORE', KEYS[1], ARGV[1]), tonumber(ARGV[3])
if not ends or tonumber(ends) > tonumber(ARGV[2]) then return 0 end
for i = 2, deleted + 1 do redis.call('DEL', KEYS[i]) end
for i = deleted + 2, #KEYS do redis.call('SREM', KEYS[i], ARGV[4]) end
redis.call('ZREM', KEYS[1], ARGV[1])
return 1
""")
