"""Adapters to other libraries: one module for each, which alone imports it, and only when called."""
