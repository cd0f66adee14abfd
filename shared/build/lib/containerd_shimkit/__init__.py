"""What the containerd wasm shims share."""
