"""Look at a model's files before any library opens them: pickles, code, links, damaged headers, hostile templates.

Nothing here loads weights. `select` uses the single checks when a model comes in; an engine calls `check_model` on
what it is about to open, for a folder may have changed since, or never have come through `select`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from inhouse.core.errors import UserError
from inhouse.engines import gguf_header, safetensors_header
from inhouse.engines.gguf_header import GgufHeader
from inhouse.engines.template_check import check_template

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
LARGEST_JSON = 64 * 2**20
MOST_FILES = 10_000
MOST_LAYERS = 512  # of llama.cpp
INDEX = "model.safetensors.index.json"
TEMPLATE = "tokenizer.chat_template"
# The old ChatGLM repositories need their own Python code, which is not run here unless a pinned commit is trusted.
REPLACED = {"chatglm": "glm or glm4"}


def check_model(path: Path, trusted: bool = False) -> None:
    """Raise the error that speaks against opening a model file or folder; several are told together.

    `trusted`: code that a folder brings may be run.
    """
    found = scan_model(path, trusted)
    if len(found) == 1:
        raise found[0]
    if found:
        raise UserError("engines.model_refused", path=path, count=len(found), found=" · ".join(map(str, found[:8])))


def scan_model(path: Path, trusted: bool = False) -> tuple[UserError, ...]:
    """Everything that speaks against opening a .gguf, a .safetensors or a Hugging Face folder; () when nothing does."""
    return tuple(error for check in _checks(path, trusted) if (error := _failing(check)) is not None)


def _failing(check: Callable[[], object]) -> UserError | None:
    try:
        check()
    except UserError as error:
        return error
    return None


def _checks(path: Path, trusted: bool) -> Iterator[Callable[[], object]]:
    if not path.is_dir():
        yield lambda: check_file(path)
        return
    yield lambda: refuse_links(path)
    if (path / "config.json").is_file():
        yield lambda: read_config(path / "config.json", trusted)
    yield lambda: indexed_weights(path)
    weights = sorted((*path.glob("*.safetensors"), *path.glob("*.gguf")))
    if not weights:
        yield lambda: refuse_pickles(path)
    for file in weights:
        yield lambda file=file: check_file(file)  # type: ignore[misc]
    yield lambda: check_folder_templates(path)


def check_file(path: Path) -> None:
    """Check one file of weights by its header, and a GGUF's templates."""
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise UserError("select.pickle", path=path, file=path.name)
    if suffix == ".safetensors":
        safetensors_header.read_header(path)
        return
    check_gguf(path)


def check_gguf(path: Path) -> GgufHeader:
    """The header of a GGUF file, when it and its chat templates can be trusted. Raises gguf.*, engines.template_*."""
    header = gguf_header.read_header(path)
    layers = header.number(f"{header.text('general.architecture')}.block_count") or 0
    if layers > MOST_LAYERS:  # llama.cpp makes room for them before it looks for their tensors: seconds
        raise UserError("gguf.damaged", path=path, at=0, reason=f"it claims {layers} layers")
    for key, value in header.metadata.items():
        if key.startswith(TEMPLATE) and isinstance(value, str):
            check_template(value, path.name)
    return header


def check_folder_templates(folder: Path) -> None:
    """Check every chat template that a Hugging Face folder may be rendered with."""
    for file in sorted((*folder.glob("*.jinja"), *folder.glob("additional_chat_templates/*.jinja"))):
        check_template(_text(file), file.name)
    settings = folder / "tokenizer_config.json"
    loaded = read_json(settings) if settings.is_file() else {}
    found = loaded.get("chat_template") if isinstance(loaded, dict) else None
    named = found if isinstance(found, list) else [{"template": found}]
    for each in named:
        if isinstance(each, dict) and isinstance(template := each.get("template"), str):
            check_template(template, settings.name)


def refuse_links(folder: Path) -> None:
    """Raise select.symlink for a link that leads out of the folder: it would bring other files into the artifact."""
    root = folder.resolve()
    for count, path in enumerate(folder.rglob("*")):
        if count >= MOST_FILES:
            raise UserError("select.config", path=folder, reason=f"it holds more than {MOST_FILES} files")
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise UserError("select.symlink", path=path, target=path.resolve())


def refuse_pickles(folder: Path) -> None:
    """Raise select.pickle when weights of a folder are pickled."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICKLES:
            raise UserError("select.pickle", path=folder, file=path.name)


def read_config(path: Path, trusted: bool = False) -> dict[str, Any]:
    """config.json as a mapping; raise select.config when it is none, select.remote_code when it wants code run.

    With `trusted` it may want the code that lies beside it, but none of another repository: select.foreign_code.
    """
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError("select.config", path=path, reason="it is not a JSON object")
    family = str(config.get("model_type"))
    if not trusted and ("auto_map" in config or family in REPLACED):
        raise UserError("select.remote_code", path=path, family=family, instead=REPLACED.get(family, "llama, qwen3"))
    if "--" in json.dumps(config.get("auto_map", {})):  # `org/name--module.Class`: code of another repository
        raise UserError("select.foreign_code", path=path)
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) and "hidden_size" not in config else config


def indexed_weights(folder: Path) -> list[Path] | None:
    """The files that the index of a folder names, all of them there; None when it has no index."""
    index = folder / INDEX
    if not index.is_file():
        return None
    listed = read_json(index)
    names = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(names, dict) or not all(isinstance(n, str) and Path(n).name == n for n in names.values()):
        raise UserError("select.config", path=index, reason="its weight_map does not name files of this folder")
    parts = sorted({folder / n for n in names.values()})
    if missing := [p.name for p in parts if not p.is_file()]:
        raise UserError("select.incomplete", path=folder, missing=", ".join(missing[:5]), count=len(missing))
    return parts


def read_json(path: Path) -> Any:
    """A JSON file of a model, bounded in size and depth; raise select.config when it is none."""
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError("select.config", path=path, reason=str(error)) from error


def _text(path: Path) -> str:
    if path.stat().st_size > LARGEST_JSON:
        raise UserError("select.config", path=path, reason=f"it is larger than {LARGEST_JSON // 2**20} MB")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError("select.config", path=path, reason="it is not UTF-8") from error
