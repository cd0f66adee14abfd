"""``slightfile.toml``: what an app may use, and of which backend."""
