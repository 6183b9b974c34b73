-- Binds a queue for good. KEYS: binding table, the one of permanent bindings. ARGV: member.
redis.pcall('SREM', KEYS[1], '')
redis.call('SADD', KEYS[1], ARGV[1])
return redis.call('SADD', KEYS[2], ARGV[1])
