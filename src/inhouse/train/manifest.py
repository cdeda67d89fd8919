"""What ran a training, besides what its record says: with both, the same loss curve and weights can be had again."""

from __future__ import annotations

import platform
import sys
from importlib import import_module
from typing import Any

from inhouse.core.plugins import package_version, source_digest

LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "safetensors",
    "numpy",
    "opacus",
    "bitsandbytes",
)


def ran_on() -> dict[str, Any]:
    """The training's own code as a digest, libraries, threads and the machine: what equal bytes depend on.

    The record holds the rest: base and dataset by their ids, settings, seed, versions and the project's commit.
    """
    import torch

    cuda = torch.cuda.is_available()
    return {
        "code": source_digest(import_module("inhouse.train.stage")),
        "libraries": {name: found for name in LIBRARIES if (found := package_version(name)) != "absent"},
        "threads": torch.get_num_threads(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "machine": platform.machine(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
    }
