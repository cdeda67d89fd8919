"""Elementwise work of a training step on a CPU in bf16, compiled by numba on first use and kept in its cache."""
