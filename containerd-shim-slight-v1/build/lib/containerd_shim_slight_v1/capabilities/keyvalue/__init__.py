"""``keyvalue``: values by keys, in stores that have names."""
