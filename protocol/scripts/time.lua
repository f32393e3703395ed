-- Returns the time. It is a script because a cluster runs a command without a key on any node.
--
-- KEYS: a key of the node whose time is wanted.
return redis.call('TIME')
