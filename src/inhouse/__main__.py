"""`python -m inhouse` is the `inhouse` program."""

from inhouse.cli.main import entry

entry()
