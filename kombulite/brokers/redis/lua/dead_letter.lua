-- Moves one element that is no message to the dead letters. If these refuse it, it keeps its lease.
-- KEYS: unacked hash, its index, the list of dead letters. ARGV: tag ('' where it is not leased), element.
-- Returns 1 unless it was leased and is not any more.
redis.pcall('ZREM', KEYS[2], '')
if ARGV[1] ~= '' then redis.call('HDEL', KEYS[1], '') end
redis.call('LPUSH', KEYS[3], ARGV[2])
if ARGV[1] == '' then return 1 end
redis.pcall('ZREM', KEYS[2], ARGV[1])
local mine = redis.call('HDEL', KEYS[1], ARGV[1])
if mine == 0 then redis.call('LPOP', KEYS[3]) end
return mine
