"""Key-value stores: one for each namespace, read before a worker runs and changed after it."""
