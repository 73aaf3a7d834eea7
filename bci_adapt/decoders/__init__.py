"""Decoders: one face over recurrent and linear ones. One decoder a file, found by listing."""
