"""``configs``: settings and secrets of the app, and where the slightfile's configs may be."""
