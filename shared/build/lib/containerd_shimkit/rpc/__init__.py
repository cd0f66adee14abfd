"""ttrpc, the protocol between containerd and its shims: sans-IO core, asyncio server and client."""
