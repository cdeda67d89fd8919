"""One rank of a training that a launch file starts: `torchrun … -m inhouse.api.rank PROJECT [section.key=value]...`.

Rank 0 runs the project until the tuned model; the other ranks wait, and train with it. The workspace must lie on
storage that all machines see. Settings come by INHOUSE_WORKSPACE and INHOUSE_OFFLINE.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from inhouse.api.run import RunRequest, run
from inhouse.core.errors import InhouseError
from inhouse.core.run import Events
from inhouse.train.parallel.group import open_group
from inhouse.train.parallel.line import announce, follow, line


def main(project: Path, overrides: tuple[str, ...]) -> int:
    """Take part; the exit code is the one that the launcher should see (another rank's end ends all)."""
    import torch.distributed as dist

    opened = open_group()
    line()
    try:
        if dist.get_rank() == 0:
            _lead(project, overrides)
            announce(None, 0)
        else:
            follow()
    except InhouseError as error:
        print(json.dumps({"error": error.to_dict()}, ensure_ascii=False), flush=True)  # noqa: T201  the launcher's log
        return error.exit_code
    if opened:
        dist.destroy_process_group()
    return 0


def _lead(project: Path, overrides: tuple[str, ...]) -> None:
    request = RunRequest(project=project, overrides=overrides, until="train")
    folder = request.store.root / "launch"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cancel").unlink(missing_ok=True)
    events = Events(folder / "events.jsonl")
    events.start_heartbeat()
    try:
        result = run(request, events)
    finally:
        events.close()
    made = {step.name: step.id for step in result.steps}
    print(json.dumps({"project": result.project, "made": made}, ensure_ascii=False), flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), tuple(sys.argv[2:])))
