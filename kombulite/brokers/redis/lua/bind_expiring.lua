-- Binds a queue that expires. KEYS: binding table, deadlines. ARGV: member, exchange, lifetime in ms.
redis.pcall('ZREM', KEYS[2], '')
local time = redis.call('TIME')
redis.call('SADD', KEYS[1], ARGV[1])
return redis.call('ZADD', KEYS[2], 'GT', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3], ARGV[2])
