"""Recurrent cells: affine gates, then an elementwise state update. One family a file, found by listing."""
