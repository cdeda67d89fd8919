"""Schema migrations of the registry, run by `release/database.py`."""
