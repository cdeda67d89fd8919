"""Find operators: a module in its kind's folder, or a third party's entry point `inhouse.<kind>`.

An operator is one file: a frozen Params class whose `use` literal equals the file's name, and the one
function that its kind demands. Nothing else is registered anywhere.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from inhouse.core.errors import InhouseError, MissingExtra, UserError

FOLDERS = {
    "reader": "inhouse.data.readers",
    "cleaner": "inhouse.data.operators",
    "rule": "inhouse.data.label.rules",
    "recogniser": "inhouse.guard.recognisers",
    "method": "inhouse.train.methods",
    "objective": "inhouse.train.objectives",
    "change": "inhouse.train.changes",
    "penalty": "inhouse.train.penalties",
    "metric": "inhouse.evaluate.metrics",
    "compressor": "inhouse.compress.methods",
}


# What rooms share and results depend on; the rest of the core only carries them.
SHARED = ("inhouse.guard.", "inhouse.remote.", "inhouse.dataset", "inhouse.core.rows")


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
        try:
            module = point.load()
        except Exception as error:  # whatever a stranger's module raises
            problem = (str(error) or type(error).__name__).splitlines()[0]
            origin = point.dist.name if point.dist is not None else "?"
            told = {"name": point.name, "kind": kind, "package": origin, "problem": problem}
            raise UserError("plugins.broken", **told) from error
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


def unexpected(error: BaseException, log: Path | str) -> InhouseError:
    """What is said of an error that nobody expected: a fault of the plugin in or below whose code it was raised."""
    packages = {
        point.module.partition(".")[0]: (kind, point)
        for kind in FOLDERS
        for point in entry_points(group=f"inhouse.{kind}")
    }
    for frame, _ in traceback.walk_tb(error.__traceback__):
        found = packages.get(str(frame.f_globals.get("__name__")).partition(".")[0])
        if found is not None:
            kind, point = found
            package = point.dist.name if point.dist is not None else "?"
            problem = f"{type(error).__name__}: {error}".splitlines()[0]
            return InhouseError("plugins.failed", kind=kind, name=point.name, package=package, problem=problem, log=log)
    return InhouseError("job.bug", kind=type(error).__name__, log=log)


@cache
def source_digest(module: ModuleType, apart: bool = False) -> str:
    """A short digest of the operator's code, and of what it imports of the same room, without comments and layout.

    Tables that lie beside this code are part of it, and so are the versions of the packages that a module names in
    RESULT_DEPENDS_ON. It enters the recipe, so a changed operator reruns what used it and a changed comment reruns
    nothing. `apart`: without the operators on the way, for a stage whose operators enter one by one where they are
    used.
    """
    found = _sources(module.__name__, Path(str(module.__file__)), apart)
    shown = [source.digest for _, source in sorted(found.items())]
    folders = {source.path.parent for name, source in found.items() if "." in name}
    shown += sorted(digest for folder in folders for digest in _tables(folder))
    shown += sorted({f"{name} {package_version(name)}" for source in found.values() for name in source.packages})
    return hashlib.sha256("\n".join(shown).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Source:
    """What a module's file holds: a digest of its code, the modules it imports, the packages it depends on."""

    path: Path
    digest: str
    imported: frozenset[str]
    packages: tuple[str, ...]


def _sources(name: str, path: Path, apart: bool) -> dict[str, _Source]:
    """A module, and what it uses of its own room and of what rooms share, by name."""
    rooms = (".".join(name.split(".")[:2]) + ".", *SHARED)
    others = _operator_modules() if apart else frozenset()
    found: dict[str, _Source] = {}
    left = [(name, path)]
    while left:
        at, file = left.pop()
        stat = file.stat()
        found[at] = _source(file, stat.st_mtime_ns, stat.st_size)
        for used in found[at].imported:
            if used.startswith(rooms) and used not in found and used not in others and (source := _source_of(used)):
                left.append((used, source))
    return found


def _operator_modules() -> frozenset[str]:
    return frozenset(operator.module.__name__ for kind in FOLDERS for operator in operators(kind).values())


@cache
def _source(path: Path, changed: int, size: int) -> _Source:
    """What one file holds; parsed once for all operators that use it. Docstrings are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported: set[str] = set()
    for node in ast.walk(tree):
        imported.update(_imported(node))
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            node.body = body[1:]  # type: ignore[attr-defined]
    digest = hashlib.sha256(ast.dump(tree).encode()).hexdigest()
    return _Source(path, digest, frozenset(imported), tuple(_named_packages(tree)))


def _named_packages(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        names = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(name, ast.Name) and name.id == "RESULT_DEPENDS_ON" for name in names):
            yield from ast.literal_eval(node.value)  # type: ignore[attr-defined]


@cache
def package_version(package: str) -> str:
    """The version that is installed, or `absent`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _tables(folder: Path) -> Iterator[str]:
    """A digest of each file in a folder of modules that is no module."""
    for path in folder.iterdir():
        if path.is_file() and path.suffix not in (".py", ".pyc", ".pyi") and not path.name.startswith("."):
            stat = path.stat()
            yield f"{path.name} {_content(path, stat.st_mtime_ns, stat.st_size)}"


@cache
def _content(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _source_of(name: str) -> Path | None:
    """The file of a module, without importing it; None for a name that is none."""
    root, *below = name.split(".")
    place = Path(str(sys.modules[root].__file__)).parent.joinpath(*below)
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _imported(node: ast.AST) -> Iterator[str]:
    """Names of modules that a node imports; of `from a import b` both a and a.b, which may be a module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def require(extra: str, *packages: str) -> None:
    """Raise MissingExtra (exit code 4) when a package of `extra` ("": of none) is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(extra, package)
