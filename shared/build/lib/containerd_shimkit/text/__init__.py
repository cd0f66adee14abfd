"""Text of an image's files, with the place of every value."""
