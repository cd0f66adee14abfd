"""The bench: see ``run``."""
