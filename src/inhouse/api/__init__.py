"""The product as typed functions: a request model in, a result model out. The only thing that faces call."""
