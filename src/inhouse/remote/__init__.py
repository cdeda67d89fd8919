"""Models behind OpenAI-compatible endpoints: how they are asked, what is kept of it, and what it may cost."""
