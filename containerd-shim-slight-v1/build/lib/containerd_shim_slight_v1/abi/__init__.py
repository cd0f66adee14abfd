"""How guests are called, and how they call the host: core modules of wit-bindgen 0.2."""
