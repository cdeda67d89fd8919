"""How well a model reads long texts: a needle test and perplexity by position, for ways to keep what was read."""
