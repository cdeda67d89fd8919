"""Bring an open language model in-house: from a project file to a gated, served release."""

__version__ = "0.1.0"
