"""Real servers for tests: each one's own, on a free port of the loopback, with its own files.

One module for each kind; ``process`` is what they have in common. Where Debian's package is not
installed the tests that ask for the server are skipped, and say which package that is.
"""
