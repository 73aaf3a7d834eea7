"""The version of this package, in a module of its own: what records it depends on nothing else of the package."""

__version__ = "0.1.0"
