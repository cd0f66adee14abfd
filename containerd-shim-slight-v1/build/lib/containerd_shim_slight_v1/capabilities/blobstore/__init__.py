"""``blobstore``: objects in containers, read and written in parts."""
