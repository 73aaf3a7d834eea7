"""A decoder that is used: trained on the days so far, led through one more."""
