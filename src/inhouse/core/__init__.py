"""The nouns of inhouse. Imports pydantic, yaml and the standard library only."""
