"""What guests may ask of the host: each interface a module of plain asynchronous Python.

None knows how guests are called; that is ``abi``'s. Objects that hold connections are made in the
event loop that serves, once for the app, and ``close`` ends every connection.
"""
