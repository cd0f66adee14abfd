"""What guests import."""
