"""Errors: a stable code, structured facts, and a text in the user's language."""

from __future__ import annotations

from typing import Any, ClassVar

from inhouse.core.messages import text


class InhouseError(Exception):
    """An error that a face can translate: `code` names it, `facts` fill its text."""

    exit_code: ClassVar[int] = 1

    def __init__(self, code: str, /, **facts: Any) -> None:
        super().__init__(code)
        self.code = code
        self.facts = facts

    def __str__(self) -> str:
        return text(self.code, **self.facts)

    def to_dict(self) -> dict[str, Any]:
        """Code, facts (as JSON-safe values), exit code and the text: what crosses a process border."""
        facts = {k: v if isinstance(v, str | int | float | bool) else str(v) for k, v in self.facts.items()}
        return {"code": self.code, "facts": facts, "exit_code": self.exit_code, "message": str(self)}


class UserError(InhouseError):
    """Something the user can mend: input, settings, machine. Exit code 2."""

    exit_code = 2


class GateFailed(InhouseError):
    """A gate of the project was not passed. Exit code 3."""

    exit_code = 3


class MissingExtra(InhouseError):
    """A feature needs a package that is not installed; `extra` is "" where no extra brings it. Exit code 4."""

    exit_code = 4

    def __init__(self, extra: str, package: str) -> None:
        super().__init__("extra.missing" if extra else "package.missing", extra=extra, package=package)


class Cancelled(InhouseError):
    """The user stopped the job. Exit code 130, as a shell reports Ctrl-C."""

    exit_code = 130

    def __init__(self) -> None:
        super().__init__("job.cancelled")


BY_EXIT_CODE: dict[int, type[InhouseError]] = {2: UserError, 3: GateFailed, 130: Cancelled}


def from_dict(data: dict[str, Any]) -> InhouseError:
    """The error that `to_dict` described in another process."""
    facts = data["facts"]
    if data["exit_code"] == MissingExtra.exit_code:
        return MissingExtra(facts["extra"], facts["package"])
    if data["exit_code"] == Cancelled.exit_code:
        return Cancelled()
    return BY_EXIT_CODE.get(data["exit_code"], InhouseError)(data["code"], **facts)
