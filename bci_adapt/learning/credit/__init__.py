"""Credit rules: what part of the past a weight is held responsible for. One rule a file, found by listing."""
