"""What every request carries, and the result types that several functions share."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from inhouse.core.params import Params
from inhouse.core.settings import settings
from inhouse.core.store import Store


class Request(Params):
    """Where to work, and whether sockets may be opened."""

    workspace: Path = Field(default_factory=lambda: settings().workspace, description="folder of artifacts and state")
    offline: bool = Field(default_factory=lambda: settings().offline, description="open no socket")

    @property
    def store(self) -> Store:
        """The workspace's artifacts."""
        return Store(self.workspace.absolute())
