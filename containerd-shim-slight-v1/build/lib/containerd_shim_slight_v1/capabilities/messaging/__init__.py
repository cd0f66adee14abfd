"""``messaging``: topics that guests publish to and subscribe to, and queues of older guests."""
