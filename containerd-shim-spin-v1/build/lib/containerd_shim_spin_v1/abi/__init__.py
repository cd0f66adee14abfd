"""How guests are called, and how they call the host."""
