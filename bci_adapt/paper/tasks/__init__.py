"""Synthetic tasks: seeded streams with a change point. One task a file, found by listing."""
