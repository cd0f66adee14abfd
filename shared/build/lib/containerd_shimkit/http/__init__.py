"""The ASGI serving loop: listen, limits, drain."""
