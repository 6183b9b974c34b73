-- Deletes what an entry names that has ended, unless somebody has extended it.
-- KEYS: the sorted set of entries, keys to delete, binding sets. ARGV: entry, now in ms, number of keys to delete,
-- member to remove from the binding sets. Returns 1 if it had ended.
local ends, deleted = redis.call('ZSCORE', KEYS[1], ARGV[1]), tonumber(ARGV[3])
if not ends or tonumber(ends) > tonumber(ARGV[2]) then return 0 end
for i = 2, deleted + 1 do redis.call('DEL', KEYS[i]) end
for i = deleted + 2, #KEYS do redis.call('SREM', KEYS[i], ARGV[4]) end
redis.call('ZREM', KEYS[1], ARGV[1])
return 1
