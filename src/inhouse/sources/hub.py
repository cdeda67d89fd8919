"""What the hubs have in common: which repository a URI names, and which of its files are fetched.

`hf:org/name[@revision][#file]` is a model; `hf:datasets/org/name[@revision]#file` is one file of a dataset.
`hf:org/name@COMMIT#+code` is a model with the Python files at its root, which is for `model.trust_remote_code` only.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from inhouse.core.errors import UserError
from inhouse.sources.archive import is_inside

URI = re.compile(
    r"^(?:hf|ms):(?P<datasets>datasets/)?(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?(?:#(?P<file>.+))?$"
)
WITH_CODE = "+code"
COMMIT = re.compile("[0-9a-f]{40}")
# Weights as safetensors or GGUF, and text. Never pickles (.bin, .pt, .ckpt) and, unless asked for, no code (.py).
WANTED = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken", "README.md")
LICENCE = ("license*", "licence*", "notice*", "copying*", "*/license*", "use_policy.md")
UNSAFE = (".py", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".so", ".dll", ".sh", ".exe")
ELSEWHERE = ("original/", "onnx/", "openvino/", "coreml/", ".")  # the same weights once more in another format


@dataclass(frozen=True)
class HubName:
    """What a hub URI names."""

    repository: str
    revision: str | None
    file: str | None
    is_dataset: bool = False
    code: bool = False


def parse(uri: str) -> HubName:
    """The parts of a hub URI; raise sources.hub_uri, sources.dataset_file or sources.unpinned_code."""
    match = URI.match(uri)
    if match is None or (match["file"] is not None and not is_inside(match["file"])):
        raise UserError("sources.hub_uri", uri=uri, scheme=uri.split(":")[0])
    if match["datasets"] and match["file"] is None:
        raise UserError("sources.dataset_file", uri=uri)
    if match["file"] == WITH_CODE:
        if not is_commit(match["revision"]):
            raise UserError("sources.unpinned_code", uri=uri)
        return HubName(match["repository"], match["revision"], None, code=True)
    return HubName(match["repository"], match["revision"], match["file"], match["datasets"] is not None)


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a whole commit hash: a branch or tag may hold other code tomorrow."""
    return revision is not None and COMMIT.fullmatch(revision) is not None


def choose(uri: str, name: HubName, files: Mapping[str, int]) -> list[str]:
    """The files to fetch out of `files` (path -> bytes), sorted.

    A repository without safetensors but with one .gguf gives that; with several, raise sources.choose_file. Only
    pickled weights: sources.no_safe_weights. Paths that lead out of the folder are never chosen.
    """
    safe = [f for f in files if is_inside(f) and not f.lower().endswith(UNSAFE)]
    if name.file is not None:
        if name.file not in safe:
            raise UserError("sources.no_file", uri=uri, file=name.file, files=", ".join(sorted(safe)[:12]))
        return sorted({name.file, *(f for f in safe if _is_terms(f))})
    chosen = {f for f in safe if is_wanted(f)}
    if not any(f.endswith(".safetensors") for f in chosen):
        weights = sorted(f for f in safe if f.endswith(".gguf"))
        if not weights:
            raise UserError("sources.no_safe_weights", uri=uri)
        if len(weights) > 1:
            raise UserError("sources.choose_file", uri=uri, files=", ".join(weights[:12]))
        chosen |= set(weights)
    return sorted(chosen | {f for f in files if name.code and is_code(f)})


def is_wanted(path: str) -> bool:
    """Whether a file of a model repository belongs to the model: weights, tokenizer, configuration, terms."""
    if path.startswith(ELSEWHERE) or path.lower().endswith(UNSAFE):
        return False
    if path.endswith(".safetensors") and ("/" in path or path.startswith("adapter_")):
        return False  # checkpoints and adapters beside the model
    return _is_terms(path) or any(fnmatchcase(path, pattern) for pattern in WANTED)


def is_code(path: str) -> bool:
    """Whether a file of a model repository is Python code that its configuration may name."""
    return path.endswith(".py") and "/" not in path


def _is_terms(path: str) -> bool:
    return path == "README.md" or any(fnmatchcase(path.lower(), pattern) for pattern in LICENCE)


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raise store.no_space before a download begins that the disk cannot hold."""
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise UserError("store.no_space", path=folder, free_mb=free // 2**20)
