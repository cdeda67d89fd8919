"""Word lists that steps of the data build read."""
