"""What the scripts of this folder share: run their checks, one JSON line each. Needs nothing but Python."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass

QUESTION = "Write one short sentence about the sea."
COUNT_SCHEMA = {
    "type": "object",
    "properties": {"count": {"type": "integer"}},
    "required": ["count"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Server:
    """Where the server is. `limited` is a key that may ask once a minute and has done so."""

    url: str
    key: str
    limited: str


def run(*checks: Callable[[Server], object]) -> None:
    """Run each check against the server that the environment names; exit with 1 when one fails."""
    server = Server(os.environ["SERVER_URL"], os.environ["SERVER_KEY"], os.environ["SERVER_LIMITED_KEY"])
    failed = 0
    for check in checks:
        name = check.__name__.replace("_", " ")
        try:
            check(server)
            print(json.dumps({"check": name, "ok": True}), flush=True)
        except Exception as error:  # noqa: BLE001  whatever it is: it is told, and the next check runs
            failed += 1
            why = f"{type(error).__name__}: {error}"
            trace = traceback.format_exc()[-1500:]
            print(json.dumps({"check": name, "ok": False, "why": why[:500], "trace": trace}), flush=True)
    sys.exit(1 if failed else 0)
