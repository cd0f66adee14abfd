"""WebAssembly hosting on wasmtime: engine, compiled modules, guests as fibers, WASI preview 1."""
