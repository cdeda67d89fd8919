"""The child process of a job: run one API function, write its result. `python -m inhouse.api.worker FOLDER`."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
import typing
from pathlib import Path
from typing import Any

from inhouse.core.errors import InhouseError
from inhouse.core.plugins import unexpected
from inhouse.core.run import Events, collect_seldom, die_with_parent, end_quickly
from inhouse.core.store import disk_error, write_durably


def main(folder: Path) -> int:
    """Run the job in `folder`; the exit code is the one a face should end with."""
    collect_seldom()
    command = json.loads((folder / "command.json").read_text(encoding="utf-8"))
    if command["parent"] is not None:
        die_with_parent(command["parent"])
    events = Events(folder / "events.jsonl")
    events.start_heartbeat()
    try:
        outcome, code = {"value": _call(command, events)}, 0
    except InhouseError as error:
        outcome, code = {"error": error.to_dict()}, error.exit_code
    except BaseException as error:  # noqa: BLE001  the border of the process: a bug is reported, its traceback logged
        traceback.print_exc()
        told: InhouseError | None = None
        if isinstance(error, OSError):
            told = disk_error(error, Path(error.filename or folder))
        told = told or unexpected(error, folder / "output.log")
        outcome, code = {"error": told.to_dict()}, told.exit_code
    events.close()
    write_durably(folder / "result.json", json.dumps(outcome, ensure_ascii=False))
    end_quickly()
    return code


def _call(command: dict[str, Any], events: Events) -> Any:
    module, _, name = command["function"].partition(":")
    function = getattr(importlib.import_module(f"inhouse.api.{module}"), name)
    request = typing.get_type_hints(function)["request"]
    return function(request.model_validate(command["request"]), events).model_dump(mode="json")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
