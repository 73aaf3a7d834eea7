"""Decode movement from primate spike recordings as electrodes drift."""

__version__ = "0.1.0"
