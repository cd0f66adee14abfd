"""Where components may connect to."""
