"""Every command of the README runs, in the order in which it stands there, on what `make demo` made."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# The demo trains and measures the real model, with one thread in CI: minutes on a quiet machine, more on a busy one.
pytestmark = pytest.mark.timeout(1800)
ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def commands(readme: str) -> list[str]:
    """The lines after `$ ` in the console blocks, without their comments."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n(.*?)```", text, re.S)
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [re.sub(r"\s+# .*", "", line).strip() for line in lines]


def unmeasured() -> dict[str, str]:
    """The environment without the coverage of subprocesses: the tests of each room run the same lines, in less time."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}


@dataclass
class Shell:
    """A shell in a folder beside the examples, with the demo's workspace and a free port in place of 8080."""

    folder: Path
    env: dict[str, str]
    port: int

    def run(self, line: str) -> str:
        line = line.replace("8080", str(self.port))
        done = subprocess.run(
            line, shell=True, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=1500, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The workspace that `make demo` filled, and what it printed."""
    workspace = tmp_path_factory.mktemp("demo") / "workspace"
    env = {**unmeasured(), "INHOUSE_WORKSPACE": str(workspace), "LC_ALL": "en_US.UTF-8", "COLUMNS": "120"}
    done = subprocess.run(
        ["make", "demo", f"VENV={BIN.parent}"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return workspace, done.stdout


@pytest.fixture(scope="module")
def shell(demo: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder = tmp_path_factory.mktemp("reader")
    (folder / "examples").symlink_to(ROOT / "examples")
    env = {
        **unmeasured(),
        "INHOUSE_WORKSPACE": str(demo[0]),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "LC_ALL": "en_US.UTF-8",
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Shell(folder, env, port)


@pytest.fixture
def server(shell: Shell) -> Iterator[str]:
    """`inhouse serve`, as a reader would start it in a second terminal; yields what it greets with."""
    words = ["inhouse", "serve", "--port", str(shell.port)]
    child = subprocess.Popen(words, cwd=shell.folder, env=shell.env, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        greeting = [child.stdout.readline()]
        while not greeting[-1].startswith("Stop with"):
            assert greeting[-1], "the server ended"
            greeting.append(child.stdout.readline())
        yield "".join(greeting)
    finally:
        child.terminate()
        assert child.wait(timeout=60) == 0


@pytest.mark.real
def test_demo_ends_with_table_gates_release_answer_and_next_commands(demo: tuple[Path, str]) -> None:
    text = demo[1]
    for wanted in (
        "base",
        "tuned",
        "exported",
        "Accuracy",
        "Macro-F1",
        "Valid answers",
        "Size",
        "Tokens/s",
        "Latency, p50",
    ):
        assert wanted in text
    assert re.search(r"Accuracy +\d+\.\d% \(\d+\.\d-\d+\.\d\)", text)
    assert "✓ passed" in text and "✗" not in text
    assert "Promoted: desk now serves desk-routing:v1" in text
    answer = re.search(r"^> (\S+)$", text, re.M)
    assert answer and answer[1] in {"acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade"}
    for command in ("inhouse serve", "inhouse chat", "inhouse report"):
        assert command in text


@pytest.mark.real
def test_demo_learned_something_and_the_export_kept_it(demo: tuple[Path, str]) -> None:
    (report,) = demo[0].glob("objects/*/measured/report.json")
    figures = json.loads(report.read_text())["figures"]
    assert figures["base.accuracy"]["value"] < 0.3 < 0.7 < figures["tuned.accuracy"]["value"]
    assert figures["tuned.accuracy"]["n"] >= 300
    assert figures["tuned_vs_base.accuracy"]["low"] > 0
    assert figures["exported_vs_tuned.accuracy"]["value"] > -0.03
    assert figures["parity.template_ids_equal"]["value"] == 1.0


@pytest.mark.real
def test_readme_commands_run_as_they_stand(shell: Shell, server: str) -> None:
    assert "API key (shown once" in server
    for line in commands("README.md"):
        if line == "inhouse serve" or line.startswith("source "):
            continue  # it runs already, beside this test; and the program is on this shell's path
        printed = shell.run(line)
        if line.startswith("inhouse keys create"):
            shell.env["INHOUSE_API_KEY"] = printed.strip().splitlines()[-1]
        if line.startswith("curl"):
            assert json.loads(printed)["choices"][0]["message"]["role"] == "assistant"
        if line.startswith("inhouse release rollback"):
            assert "desk now serves desk-routing:v1 (before: desk-routing:v2)" in printed


@pytest.mark.real
def test_chinese_readme_commands_run_and_answer_in_chinese(shell: Shell, tmp_path: Path) -> None:
    known = set(commands("README.md"))
    mine = Shell(tmp_path, shell.env, shell.port)
    printed = ""
    for line in commands("README.zh-CN.md"):
        if line not in known or line.startswith("inhouse data check"):
            printed += mine.run(line + ("" if "--lang" in line else " --lang zh"))
    assert "准确率" in printed and "已就绪" in printed and "读取" in printed


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]), ids=str)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_readmes_show_the_same_commands() -> None:
    def plain(readme: str) -> list[str]:
        return [re.sub(r" --lang \w+", "", line) for line in commands(readme)]

    assert plain("README.md") == plain("README.zh-CN.md")


@pytest.mark.real
def test_demo_again_makes_nothing_anew(demo: tuple[Path, str]) -> None:
    before = {p.name for p in (demo[0] / "jobs").iterdir()}
    env = {**unmeasured(), "INHOUSE_WORKSPACE": str(demo[0]), "LC_ALL": "en_US.UTF-8"}
    began = time.monotonic()
    done = subprocess.run(
        ["make", "demo", f"VENV={BIN.parent}"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    print(f"second demo: {time.monotonic() - began:.1f} s")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (demo[0] / "jobs").iterdir()} == before
