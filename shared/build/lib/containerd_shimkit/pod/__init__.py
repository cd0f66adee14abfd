"""Pods whose sandbox is made here: containerd's sandbox API (``sandboxer = "shim"``)."""
