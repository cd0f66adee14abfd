"""A Redis client: the protocol without I/O, a connection, and the addresses that guests write.

Ours, since no library does what guests need: their interface tells a status from a string, which
hiredis does not, and a reply must be refused by its announced length, before it is in memory.
"""
