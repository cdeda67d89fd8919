"""The budgets of the design: sizes, cycles, broad excepts, texts in both languages, a light start."""

from __future__ import annotations

import ast
import json
import re
import resource
import string
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "inhouse"
FILES = sorted(SOURCE.rglob("*.py"))
MESSAGES = SOURCE / "core" / "messages"
RAISERS = {"UserError", "GateFailed", "InhouseError"}


@cache
def trees() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in FILES]


@cache
def catalogue() -> dict[str, dict[str, str]]:
    texts: dict[str, dict[str, str]] = {}
    for path in MESSAGES.glob("*.json"):
        part = json.loads(path.read_text(encoding="utf-8"))
        assert not texts.keys() & part.keys(), f"codes of {path.name} stand in another file too"
        texts |= part
    return texts


def placeholders(text: str) -> set[str]:
    return {name.split(".")[0].split("[")[0] for _, name, _, _ in string.Formatter().parse(text) if name}


def test_files_and_functions_keep_their_size() -> None:
    long = []
    for path, tree in trees():
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > 500:
            long.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60:
                long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1}")
    assert not long, "\n".join(long)


def test_functions_take_few_parameters() -> None:
    wide = []
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
                if len(names) > 5:
                    wide.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {len(names)} parameters")
    assert not wide, "\n".join(wide)


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules of ours that a tree imports, inside functions too; imports for types only do not count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("inhouse"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("inhouse"):
            yield str(node.module)
            yield from (f"{node.module}.{a.name}" for a in node.names)
        yield from imports(node)


def test_modules_import_without_cycles() -> None:
    names = {path: ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts) for path in FILES}
    names = {path: name.removesuffix(".__init__") for path, name in names.items()}
    graph = {names[path]: {i for i in imports(tree) if i in names.values()} for path, tree in trees()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name in done:
            return
        for wanted in graph[name] - {name}:
            visit(wanted, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_broad_excepts_are_rare_and_have_a_reason() -> None:
    found, lines = [], 0
    for path in FILES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            lines += 1
            if re.search(r"except\s*(Exception|BaseException)?\s*(as \w+)?:", line) and "except" in line.split("#")[0]:
                found.append(f"{path.relative_to(ROOT)}:{number}")
                assert "#" in line, f"{path.relative_to(ROOT)}:{number}: a broad except without its reason"
    assert len(found) <= 0.5 * max(lines / 1000, 1), f"{len(found)} broad excepts in {lines} lines: {found}"


def test_lint_and_import_contracts_ignore_nothing() -> None:
    assert "ignore_imports" not in (ROOT / ".importlinter").read_text(encoding="utf-8")


def test_every_text_has_both_languages_with_equal_placeholders() -> None:
    for code, texts in catalogue().items():
        assert set(texts) == {"en", "zh"}, code
        assert all(texts.values()), code
        assert placeholders(texts["en"]) == placeholders(texts["zh"]), code
        words = re.sub(r"{.*?}", "", texts["en"])
        assert re.search(r"[\u4e00-\u9fff]", texts["zh"]) or not re.search(r"[a-z]{2}", words), f"{code}: not Chinese"


def test_chinese_texts_have_a_space_beside_the_word_token() -> None:
    close = [code for code, texts in catalogue().items() if re.search(r"[一-龥]tokens?|tokens?[一-龥]", texts["zh"])]
    assert not close, close


def raised() -> Iterator[tuple[str, int, ast.Call]]:
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RAISERS:
                yield str(path.relative_to(ROOT)), node.lineno, node


def test_every_error_has_a_text_and_gives_it_its_facts() -> None:
    texts = catalogue()
    for path, line, call in raised():
        if "core/errors.py" in path:
            continue
        codes = [a.value for a in ast.walk(call.args[0]) if isinstance(a, ast.Constant)]
        given = {k.arg for k in call.keywords if k.arg}
        starred = any(k.arg is None for k in call.keywords)
        for code in codes:
            if not isinstance(code, str) or "." not in code:
                continue
            assert code in texts, f"{path}:{line}: no text for {code}"
            missing = placeholders(texts[code]["en"]) - given
            assert starred or not missing, f"{path}:{line}: {code} needs {missing}"


def test_every_text_is_used() -> None:
    code = "\n".join(p.read_text(encoding="utf-8") for p in FILES)
    built = ("cli.", "step.", "doctor.", "cell.", "card.", "data.reason.", "unit.")  # put together from names
    unused = [c for c in catalogue() if c not in code and not c.startswith(built) and c != "cli"]
    assert not unused, unused


def test_environment_is_read_in_one_place() -> None:
    readers = [
        str(p.relative_to(ROOT))
        for p in FILES
        if "os.environ" in p.read_text("utf-8") or "os.getenv" in p.read_text("utf-8")
    ]
    assert readers == ["src/inhouse/core/settings.py"]


def test_help_starts_fast_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from inhouse.cli.main import main; main(['--help']);"
        "print(sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stderr.strip().splitlines()[-1]))
    heavy = {"torch", "transformers", "numpy", "polars", "sqlalchemy", "rich", "httpx", "starlette", "pydantic"}
    assert not loaded & heavy
    assert "doctor" in done.stdout


def test_help_keeps_its_cpu_budget() -> None:
    best = min(_help_cpu() for _ in range(5))
    assert best <= 0.5, f"inhouse --help took {best:.2f} s CPU"


def _help_cpu() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "inhouse", "--help"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("stage", ["select", "data", "train", "evaluate", "compress", "release"])
def test_stage_import_loads_nothing_heavy(stage: str) -> None:
    code = f"import sys, inhouse.{stage}.stage; print(sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout.strip()))
    assert not loaded & {"torch", "transformers", "peft", "numpy", "polars", "sqlalchemy", "sklearn", "matplotlib"}
