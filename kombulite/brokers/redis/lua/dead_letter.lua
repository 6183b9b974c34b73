-- Moves one element that is no message to the dead letters.
-- KEYS: unacked hash, its index, the list of dead letters. ARGV: tag ('' where it is not leased), element.
-- Returns 1 unless it was leased and is not any more.
redis.pcall('ZREM', KEYS[2], ARGV[1])
local mine = ARGV[1] == '' and 1 or redis.call('HDEL', KEYS[1], ARGV[1])
if mine == 1 then redis.call('LPUSH', KEYS[3], ARGV[2]) end
return mine
