"""Jobs of the paper's tasks and streams."""
