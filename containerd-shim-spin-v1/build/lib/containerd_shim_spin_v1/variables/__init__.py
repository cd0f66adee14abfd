"""Values of an app's variables."""
