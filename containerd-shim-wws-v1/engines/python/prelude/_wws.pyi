"""What `main.c` has for the prelude."""

def send_http_request(
    method: int, uri: str, headers: list[tuple[str, str]], body: bytes | None, /
) -> tuple[int, list[tuple[bytes, bytes]], bytes | None] | tuple[int, bytes]:
    """Return (status, headers, body), or for an error (kind, message)."""
