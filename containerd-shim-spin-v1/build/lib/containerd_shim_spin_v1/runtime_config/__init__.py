"""``runtime-config.toml``: what whoever runs the app says of its surroundings."""
