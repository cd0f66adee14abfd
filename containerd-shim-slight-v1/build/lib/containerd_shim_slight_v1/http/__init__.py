"""The HTTP server of an app: its routes, the servers it starts, and how a request is answered."""
