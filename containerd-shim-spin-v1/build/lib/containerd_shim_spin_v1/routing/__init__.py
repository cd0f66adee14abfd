"""Which trigger a request is for, and what its component is told of it."""
