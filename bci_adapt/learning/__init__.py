"""Recurrent networks that learn one bin at a time, on plain arrays. Nothing here knows of sessions."""
