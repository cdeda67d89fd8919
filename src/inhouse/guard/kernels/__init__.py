"""Inner loops over text as bytes, compiled by numba on first use and kept in its cache."""
