"""Where key-value stores are kept: one module for each kind."""
