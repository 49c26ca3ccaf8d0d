"""Decoding over HTTP: the request of `diffusers.utils.remote_utils.remote_decode`, batches, bounds, and metrics."""
