"""What guests may use: a directory for each family, in it ``base`` and a module for each backend.

Nothing here knows of any ABI.
"""
