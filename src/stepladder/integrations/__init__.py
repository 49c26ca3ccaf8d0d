"""Where stepladder meets other libraries: one module for each, the only one that imports it, and only when called."""
