"""The parts of ``build_binary``: what goes into a shim's executable, and how."""
