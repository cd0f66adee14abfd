"""A project's files: which are workers, at which routes, and what configures them."""
