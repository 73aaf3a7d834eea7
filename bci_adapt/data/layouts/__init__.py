"""Layouts: where a dataset keeps spikes, targets and valid time. A file here with a `Layout` in it is found."""
