"""Find operators: a module in its kind's folder, or a third party's entry point `inhouse.<kind>`.

An operator is one file: a frozen Params class whose `use` literal equals the file's name, and the one
function that its kind demands. Nothing else is registered anywhere.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from inhouse.core.errors import MissingExtra

FOLDERS = {
    "reader": "inhouse.data.readers",
    "cleaner": "inhouse.data.operators",
    "rule": "inhouse.data.label.rules",
    "recogniser": "inhouse.guard.recognisers",
    "method": "inhouse.train.methods",
    "metric": "inhouse.evaluate.metrics",
    "compressor": "inhouse.compress.methods",
}


@dataclass(frozen=True)
class Operator:
    """A named module of a kind, with the class of its settings."""

    name: str
    module: ModuleType
    params: type[BaseModel]

    def function(self, name: str) -> Any:
        """The function that this operator's kind demands."""
        return getattr(self.module, name)


@cache
def operators(kind: str) -> dict[str, Operator]:
    """Every operator of `kind` by name, sorted; ours first, a third party may not replace one of ours."""
    found: dict[str, Operator] = {}
    for point in entry_points(group=f"inhouse.{kind}"):
        module = point.load()
        if operator := _operator(point.name, module):
            found[operator.name] = operator
    package = importlib.import_module(FOLDERS[kind])
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{FOLDERS[kind]}.{info.name}")
        if operator := _operator(info.name, module):
            found[operator.name] = operator
    return dict(sorted(found.items()))


def operator_of(kind: str, params: BaseModel) -> Operator:
    """The operator that these settings belong to."""
    use: str = params.use  # type: ignore[attr-defined]
    return operators(kind)[use]


def _operator(name: str, module: ModuleType) -> Operator | None:
    for member in vars(module).values():
        if inspect.isclass(member) and issubclass(member, BaseModel) and member.__module__ == module.__name__:
            field = member.model_fields.get("use")
            if field is not None and field.default == name:
                return Operator(name, module, member)
    return None  # a helper module beside the operators


@cache
def source_digest(module: ModuleType) -> str:
    """A short digest of the operator's code, and of what it imports of the same room, without comments and layout.

    It enters the recipe, so a changed operator reruns what used it and a changed comment reruns nothing.
    """
    import hashlib

    trees = _trees(module.__name__, Path(str(module.__file__)))
    shown = [ast.dump(tree) for _, tree in sorted(trees.items())]
    return hashlib.sha256("\n".join(shown).encode()).hexdigest()[:16]


def _trees(name: str, path: Path) -> dict[str, ast.Module]:
    """The code of a module, and of what it uses of its own room and of the guard, by name, docstrings left out."""
    rooms = (".".join(name.split(".")[:2]) + ".", "inhouse.guard.")
    found: dict[str, ast.Module] = {}
    left = [(name, path)]
    while left:
        at, file = left.pop()
        found[at] = _bare(ast.parse(file.read_text(encoding="utf-8")))
        for used in _imported(found[at]):
            if used.startswith(rooms) and used not in found and (source := _source_of(used)):
                left.append((used, source))
    return found


def _source_of(name: str) -> Path | None:
    """The file of a module, without importing it; None for a name that is none."""
    root, *below = name.split(".")
    place = Path(str(sys.modules[root].__file__)).parent.joinpath(*below)
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _imported(tree: ast.Module) -> Iterator[str]:
    """Names of modules that are imported anywhere; of `from a import b` both a and a.b, which may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _bare(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            node.body = body[1:]  # type: ignore[attr-defined]
    return tree


def _is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def require(extra: str, *packages: str) -> None:
    """Raise MissingExtra (exit code 4) when a package of `extra` is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(extra, package)
