"""Ask a release one real question, through the same endpoint that clients use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from inhouse.api.run import RunResult
from inhouse.api.serving import Chat, ChatRequest, open_chat
from inhouse.core.errors import UserError
from inhouse.core.rows import Row
from inhouse.core.store import Store
from inhouse.dataset import read_rows


@dataclass(frozen=True)
class Trial:
    """A question from the held-out rows, and the conversation to ask it in."""

    row: Row
    chat: Chat

    @property
    def question(self) -> str:
        """The last thing said to the model."""
        return self.row.prompt[-1].content or ""


@contextmanager
def open_trial(result: RunResult, offline: bool) -> Iterator[Trial]:
    """Serve what the run promoted and pick the first test row; raises run.nothing_promoted."""
    dataset = next((s.id for s in result.steps if s.name == "dataset"), None)
    if result.release is None or result.release.serving is None or dataset is None:
        raise UserError("run.nothing_promoted", project=result.project)
    row = next(read_rows(Store(result.workspace).path(dataset), "test"))
    system = next((m.content for m in row.prompt if m.role == "system"), None)
    request = ChatRequest(
        workspace=result.workspace, offline=offline, deployment=result.release.deployment, system=system
    )
    with open_chat(request) as chat:
        yield Trial(row, chat)
