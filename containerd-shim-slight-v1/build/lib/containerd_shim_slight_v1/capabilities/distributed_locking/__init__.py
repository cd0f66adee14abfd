"""``distributed-locking``: locks that apps on several nodes share."""
