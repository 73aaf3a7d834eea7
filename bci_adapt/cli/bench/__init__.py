"""Measurements beside their limits and rivals."""
