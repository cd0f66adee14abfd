"""Tasks: their states, the container behind each, and the service containerd calls."""
