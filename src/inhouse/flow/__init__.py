"""Which stages must run, and running them."""
