"""Figures, drawn from tables and plain arrays."""
