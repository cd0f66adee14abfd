"""How workers are run: programs, and sources by the engine of their language."""
