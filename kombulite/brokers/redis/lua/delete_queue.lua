-- Deletes a queue. KEYS: how it was declared (which not everybody may touch), its lists, then binding tables.
-- ARGV: number of lists, 1 if only an empty one, then for each table a member to remove.
-- Returns the messages gone with it, -1 for one that is not empty.
local lists, count = tonumber(ARGV[1]), 0
for i = 1, lists do count = count + redis.call('LLEN', KEYS[i]) end
if ARGV[2] == '1' and count > 0 then return -1 end
for i = 1, lists do redis.call('DEL', KEYS[i]) end
for i = lists + 1, #KEYS do redis.call('SREM', KEYS[i], ARGV[i - lists + 2]) end
return count
