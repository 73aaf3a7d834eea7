"""How the learning loop is run: compiled for the CPU (numba), or as plain Python for the tests."""
