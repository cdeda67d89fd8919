"""Readers: one file per format. Each has SUFFIXES, a Params class and `read(path, params)`."""
