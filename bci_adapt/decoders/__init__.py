"""Decoders: one face over recurrent and linear ones. One decoder a file, found by listing.

Nothing is imported here: every decoder's results depend on this file, and must not depend on every decoder.
"""
