"""``http-client``: requests to servers."""
