-- The time. As a script, since a cluster has a command without a key run anywhere.
--
-- KEYS: one that the node has whose time it is to be.
return redis.call('TIME')
