"""HTTP as a client: URLs, connections, redirects and whole responses. Who may ask is not known."""
