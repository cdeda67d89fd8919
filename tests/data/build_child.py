"""A build in a process of its own, to be killed. Imported once by a server that forks, so that each starts at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jieba
import polars  # noqa: F401

from inhouse.core.plugins import operators
from inhouse.core.protocols import Context
from inhouse.core.run import Events
from inhouse.data import stage, tasks
from inhouse.data.kernels import buffers, fasttext, gopher, lines, minhash, ngrams, space  # noqa: F401
from inhouse.data.settings import DataParams
from inhouse.guard.kernels import scan  # noqa: F401

jieba.setLogLevel(60)
jieba.initialize()
operators("cleaner")


def build(data: str, shard_bytes: int, folder: Path, scratch: Path, out: Path) -> None:
    """Build a dataset as the stage does, with unfinished work of an earlier try at `scratch`."""
    stage.SMALL = 1
    tasks.sync_folder = lambda path: None
    context = Context({}, out, scratch, folder / ".sources", folder, Events(), 7, True, "evaluation")
    params = DataParams.model_validate(json.loads(data))
    result = stage.perform(params, stage.located_of(params, context), context, shard_bytes)
    stage.write(result, out)


if __name__ == "__main__":
    build(sys.argv[1], int(sys.argv[2]), *map(Path, sys.argv[3:6]))
