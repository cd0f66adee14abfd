"""Documents, followed as a reader follows them."""
