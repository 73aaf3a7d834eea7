"""Streams to learn from the first bin on, and rivals of their own fields. One kind a file, found by listing."""
