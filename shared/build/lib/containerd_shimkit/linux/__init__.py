"""The kernel's side: system calls, namespaces, mounts, capabilities and cgroups."""
