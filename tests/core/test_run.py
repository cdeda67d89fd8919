"""Events, cancel, heartbeat, children that end with their parent; settings, errors, messages, plugins, rows."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from inhouse.core import messages, plugins, run
from inhouse.core.errors import Cancelled, GateFailed, InhouseError, MissingExtra, UserError, from_dict
from inhouse.core.plugins import operator_of, operators, package_version, require, source_digest
from inhouse.core.rows import Message, Row
from inhouse.core.run import Events, peak_memory, reset_peak_memory
from inhouse.core.settings import child_environment, settings, usable_cores


def events_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_track_reports_progress_and_the_end(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl")
    events.stage = "data"
    assert list(events.track("abc", 3, "rows")) == ["a", "b", "c"]
    assert list(events.track("ab", None, "rows")) == ["a", "b"]
    events.note("job.cancelled")
    seen = events_of(tmp_path / "events.jsonl")
    assert seen[0]["event"] == "stage.progress" and seen[0]["stage"] == "data"
    assert any(e.get("done") == 3 and e.get("total") == 3 for e in seen)
    assert seen[-1]["code"] == "job.cancelled"


def test_events_without_a_path_are_silent() -> None:
    events = Events()
    events.progress(1, 2, "rows")
    events.note("job.cancelled")


def test_cancel_file_stops_at_next_progress(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl")
    (tmp_path / "cancel").touch()
    with pytest.raises(Cancelled):
        events.progress(1, 2, "rows")


def test_heartbeat_beats_until_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "HEARTBEAT_S", 0.01)
    events = Events(tmp_path / "events.jsonl")
    events.start_heartbeat()
    deadline = time.monotonic() + 10
    log = tmp_path / "events.jsonl"
    while not (log.exists() and log.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.01)
    events.close()
    assert events_of(tmp_path / "events.jsonl")[0]["event"] == "heartbeat"


CHILD = """
import os, sys, time
from inhouse.core import run
if {polling}:
    run.sys = type(sys)("sys"); run.sys.platform = "other"
run.die_with_parent({parent})
print(os.getpid(), flush=True)
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1].replace("PARENT", str(os.getpid()))])
time.sleep(60)
"""


@pytest.mark.parametrize("polling", [False, True])
def test_child_ends_when_its_parent_is_killed(polling: bool) -> None:
    child_code = CHILD.format(polling=polling, parent="PARENT")
    parent = subprocess.Popen([sys.executable, "-c", PARENT, child_code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def test_child_of_a_parent_that_is_gone_ends_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD.format(polling=False, parent=1)], timeout=30, check=False)
    assert done.returncode == 1


def test_parent_is_polled_where_the_kernel_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    parents, ended = iter([7, 7, 1]), []
    monkeypatch.setattr(run.os, "getppid", lambda: next(parents))
    monkeypatch.setattr(run.time, "sleep", lambda _: None)
    monkeypatch.setattr(run.os, "_exit", ended.append)
    run._watch_parent(7)
    assert ended == [1]


@pytest.mark.parametrize(("platform", "alive", "wanted"), [("linux", False, [1]), ("darwin", True, [])])
def test_die_with_parent_ends_a_child_that_came_too_late(
    monkeypatch: pytest.MonkeyPatch, platform: str, alive: bool, wanted: list[int]
) -> None:
    ended: list[int] = []
    parent = os.getpid() if alive else -1
    monkeypatch.setattr(run.sys, "platform", platform)
    monkeypatch.setattr(run.ctypes, "CDLL", lambda _: type("C", (), {"prctl": lambda *_: 0})())
    monkeypatch.setattr(run, "_watch_parent", lambda _: None)
    monkeypatch.setattr(run.os, "getppid", lambda: os.getpid())
    monkeypatch.setattr(run.os, "_exit", ended.append)
    run.die_with_parent(parent)
    assert ended == wanted


def test_process_mark_tells_one_process_from_another_and_from_none() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mark = run.process_mark(child.pid)
    assert mark and mark == run.process_mark(child.pid) != run.process_mark(os.getpid())
    child.communicate()
    assert run.process_mark(child.pid) is None
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    assert run.process_mark(zombie.pid) is None
    zombie.wait()


def test_process_mark_elsewhere_tells_alive_from_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.sys, "platform", "darwin")
    assert run.process_mark(os.getpid()) == "alive"
    assert run.process_mark(2**22 + 1) is None
    monkeypatch.setattr(run.os, "kill", lambda *_: (_ for _ in ()).throw(PermissionError))
    assert run.process_mark(1) == "alive"


def test_release_memory_gives_pages_back() -> None:
    run.release_memory()
    monkey = run.ctypes.CDLL
    try:
        run.ctypes.CDLL = lambda _: object()  # type: ignore[assignment,misc]
        run.release_memory()
    finally:
        run.ctypes.CDLL = monkey  # type: ignore[misc]


def test_peak_memory_sees_an_allocation_and_resets() -> None:
    reset_peak_memory()
    before = peak_memory()
    with mmap.mmap(-1, 96 << 20) as block:  # given back for certain, whatever this process has done before
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        grown = peak_memory()
    reset_peak_memory()
    assert grown - before > 80 << 20
    assert peak_memory() < grown


def test_peak_memory_elsewhere_uses_the_process_total(monkeypatch: pytest.MonkeyPatch) -> None:
    here = peak_memory()
    monkeypatch.setattr(run.sys, "platform", "darwin")
    assert peak_memory() > 0 and here > 0


def test_error_crosses_a_process_border_whole() -> None:
    for error in (UserError("project.missing", path="x"), GateFailed("project.missing", path="x"), Cancelled()):
        again = from_dict(json.loads(json.dumps(error.to_dict())))
        assert type(again) is type(error) and str(again) == str(error) and again.exit_code == error.exit_code
    missing = from_dict(MissingExtra("train", "torch").to_dict())
    assert isinstance(missing, MissingExtra) and missing.exit_code == 4 and "inhouse[train]" in str(missing)
    assert from_dict({"code": "job.cancelled", "facts": {}, "exit_code": 1}).exit_code == InhouseError.exit_code


@pytest.mark.parametrize(("wanted", "code"), [("zh_CN.UTF-8", "zh"), ("en_US", "en"), ("de_DE", "en"), ("", "en")])
def test_language_follows_the_environment(monkeypatch: pytest.MonkeyPatch, wanted: str, code: str) -> None:
    for name in ("INHOUSE_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LC_ALL", wanted)
    monkeypatch.setattr(messages, "_chosen", [])
    assert messages.language() == code


def test_text_is_given_in_the_chosen_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "_chosen", [])
    messages.use_language("zh")
    assert "找不到项目文件" in str(UserError("project.missing", path="x"))
    messages.use_language("en")
    assert "no project file" in str(UserError("project.missing", path="x"))
    assert messages.known("project.missing") and not messages.known("no.such")


def test_settings_read_the_environment_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INHOUSE_WORKSPACE", "/somewhere")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("INHOUSE_THREADS", "3")
    assert settings().workspace == Path("/somewhere") and settings().offline and usable_cores() == 3
    monkeypatch.setenv("INHOUSE_THREADS", "none")
    assert settings().threads is None and usable_cores() >= 1
    assert child_environment(offline=True)["HF_HUB_OFFLINE"] == "1"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert "HF_HUB_OFFLINE" not in child_environment(offline=False)
    assert child_environment(offline=False)["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "64"
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "500")
    assert child_environment(offline=False)["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "500"


def test_require_absent_package_names_the_extra() -> None:
    require("core", "json")
    with pytest.raises(MissingExtra, match=r"inhouse\[train\]"):
        require("train", "json", "no_such_package_here")


OPERATOR = '''"""{doc}"""
from typing import Literal
from inhouse.core.params import Params
class Shout(Params):
    """{doc}"""
    use: Literal["shout"] = "shout"
def run(text):
    return text{call}  # {doc}
'''


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of somebody else's that offers a cleaner `shout` by entry point."""
    (tmp_path / "shouting.py").write_text(OPERATOR.format(doc="Make it loud.", call=".upper()"))
    info = tmp_path / "shouting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[inhouse.cleaner]\nshout = shouting\nbroken = json\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    operators.cache_clear()
    yield tmp_path / "shouting.py"  # type: ignore[misc]
    operators.cache_clear()


def test_third_party_operator_is_found_by_entry_point(third_party: Path) -> None:
    found = operators("cleaner")
    assert "shout" in found and "normalize_space" in found and "broken" not in found
    operator = operator_of("cleaner", found["shout"].params())
    assert operator.function("run")("a") == "A"


def test_version_of_a_package_that_is_not_installed_is_absent() -> None:
    assert package_version("no-package-of-this-name") == "absent"
    assert package_version("pydantic")[0].isdigit()


def test_source_digest_ignores_comments_but_not_code(tmp_path: Path) -> None:
    def digest(doc: str, call: str) -> str:
        module = type(sys)("shouting")
        module.__file__ = str(tmp_path / "shouting.py")
        Path(module.__file__).write_text(OPERATOR.format(doc=doc, call=call))
        return source_digest(module)

    assert digest("one", ".upper()") == digest("two", ".upper()") != digest("one", ".lower()")


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """An operator with a helper in a folder of its own, where a table lies; gives the operator's digest."""
    house = tmp_path / "house"
    (house / "tools" / "words").mkdir(parents=True)
    (house / "tools" / "shouting.py").write_text("from house.tools.words import lists\n")
    (house / "tools" / "words" / "__init__.py").touch()
    (house / "tools" / "words" / "lists.py").write_text('RESULT_DEPENDS_ON = ("numpy",)\n')
    (house / "tools" / "words" / "loud.txt").write_text("LOUD")
    root = ModuleType("house")
    root.__file__ = str(house / "__init__.py")
    monkeypatch.setitem(sys.modules, "house", root)

    def digest() -> str:
        module = ModuleType("house.tools.shouting")
        module.__file__ = str(house / "tools" / "shouting.py")
        return source_digest(module)

    return digest


def test_source_digest_covers_tables_beside_the_code(room: Callable[[], str], tmp_path: Path) -> None:
    before = room()
    assert room() == before
    table = tmp_path / "house" / "tools" / "words" / "loud.txt"
    table.write_text("LOUDER")
    after = room()
    table.rename(table.with_name("words.txt"))
    assert len({before, after, room()}) == 3
    (tmp_path / "house" / "tools" / "words" / "lists.cpython-311.pyc").touch()
    table.with_name("words.txt").write_text("LOUD")
    table.with_name("words.txt").rename(table)
    assert room() == before


def test_source_digest_covers_versions_of_packages_that_decide_a_result(
    room: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = room()
    monkeypatch.setattr(plugins, "package_version", {"numpy": "99.0"}.__getitem__)
    assert room() != before


def test_packages_that_decide_a_result_are_installed_under_the_names_given() -> None:
    modules = [operator.module for kind in plugins.FOLDERS for operator in operators(kind).values()]
    named = {
        package
        for module in modules
        for source in plugins._sources(module.__name__, Path(str(module.__file__)), False).values()
        for package in source.packages
    }
    assert {"ftfy", "jieba", "pypdfium2"} <= named
    optional = {"gliner", "presidio-analyzer", "spacy"}
    assert not [package for package in named - optional if plugins.package_version(package) == "absent"]


def test_source_digest_of_a_stage_leaves_operators_to_themselves() -> None:
    from inhouse.data import stage

    found = set(plugins._sources(stage.__name__, Path(str(stage.__file__)), True))
    assert {"inhouse.data.build", "inhouse.data.mix", "inhouse.data.shapes.messages", "inhouse.dataset"} <= found
    assert {"inhouse.data.operators.around", "inhouse.data.readers.bytes"} <= found
    assert not {"inhouse.data.operators.leaks", "inhouse.data.readers.csv"} & found


def test_module_without_settings_is_no_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plugins.FOLDERS, "plain", "json")
    assert operators("plain") == {}


def test_operator_names_equal_their_files() -> None:
    for kind in plugins.FOLDERS:
        for name, operator in operators(kind).items():
            assert operator.module.__name__.rpartition(".")[2] == name


def test_row_is_a_question_and_its_answer() -> None:
    turns = [Message(role="user", content="你好\u2028x"), Message(role="assistant", content="a")]
    row = Row(id="00ff", source="s", offset=3, messages=turns)
    assert row.answer == "a" and row.prompt == turns[:1]
    assert row.prompt[0].as_dict() == {"role": "user", "content": "你好\u2028x"}


def test_key_for_another_endpoint_comes_from_a_variable_made_for_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from inhouse.core.settings import upstream_key

    monkeypatch.setenv("INHOUSE_UPSTREAM_GPU", "secret")
    monkeypatch.setenv("HOME_SECRET", "secret")
    assert upstream_key("INHOUSE_UPSTREAM_GPU") == "secret" and upstream_key("INHOUSE_UPSTREAM_NONE") is None
    with pytest.raises(ValueError):
        upstream_key("HOME_SECRET")
