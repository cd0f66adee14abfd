"""The files a component sees."""
