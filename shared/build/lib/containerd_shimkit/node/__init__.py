"""The node that a shim is installed on: its containerd's configuration, and what a shim needs."""
