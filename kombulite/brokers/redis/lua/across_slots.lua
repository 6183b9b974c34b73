-- The script that follows, for keys of several slots of one node. A cluster takes no such KEYS, so they come as ARGV,
-- after their number; a script without KEYS may use all that its node has, and gets an error for what that has not.
local KEYS, own = {}, {}
for i = 2, ARGV[1] + 1 do KEYS[i - 1] = ARGV[i] end
for i = ARGV[1] + 2, #ARGV do own[#own + 1] = ARGV[i] end
local ARGV = own
