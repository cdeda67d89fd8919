"""Every block of the pages on data and labels works when it is pasted, in order, into an empty folder.

The commands of the page on training are only read as the program would read them: they take minutes.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from inhouse.cli.build import api_function, request_model, request_of
from inhouse.cli.commands import Command
from inhouse.cli.main import main
from inhouse.compress.methods.gguf import Gguf
from inhouse.compress.stage import CompressParams
from inhouse.core import store
from inhouse.core.gate import Gate
from inhouse.data import tasks
from inhouse.data.label.settings import LabelParams
from inhouse.evaluate.settings import EvaluateParams
from inhouse.flow.project import load
from inhouse.release.settings import ReleaseParams, ServeParams
from inhouse.train.methods.prompt import Prompt
from inhouse.train.objectives.dpo import Dpo
from inhouse.train.params import TrainParams

DOCS = Path(__file__).resolve().parents[2] / "docs"
KEYS = "1\n" * 200  # what somebody at the keyboard answers


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Kind and text of the blocks that a reader would paste."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return ((kind, block) for kind, block in re.findall(r"```(console|yaml)\n(.*?)```", text, re.S))


def typed(block: str) -> Iterator[str]:
    """What stands behind the prompts, lines that `>` goes on with together."""
    for command in re.split(r"^\$ ", block, flags=re.M)[1:]:
        yield re.sub(r"\n> ", "\n", command).strip()


def paste_settings(block: str) -> None:
    """Write or extend the file that the first line names; what names none is a section to be read."""
    found = re.match(r"# (added to |追加到 )?(\S+\.yaml)\n", block)
    if not found:
        LabelParams.model_validate(yaml.safe_load(block)["label"])
        return
    file = Path(found[2])
    with file.open("a" if found[1] else "w", encoding="utf-8") as f:
        f.write(block)
    load(file)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("page", ["data.md", "labelling.md"])
def test_page_works_as_it_stands(
    page: str, language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for module in (tasks, store):  # nothing here can tell whether an artifact was flushed to the disk
        monkeypatch.setattr(module, "sync_folder", lambda path: None)
    monkeypatch.setenv("INHOUSE_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for kind, block in blocks(f"{language}/{page}"):
        if kind == "yaml":
            paste_settings(block)
            continue
        for line in typed(block):
            if line.startswith("inhouse "):
                monkeypatch.setattr("sys.stdin", io.StringIO(KEYS))
                code = main(shlex.split(line)[1:])
                said = capsys.readouterr()
                assert code == 0, f"{line}\n{said.out}\n{said.err}"
            else:
                subprocess.run(["bash", "-c", line], check=True)


@pytest.mark.parametrize("page", ["data.md", "labelling.md", "training.md", "evaluate-release.md"])
def test_both_languages_show_the_same_commands(page: str) -> None:
    shown = [
        [
            re.sub(r"--reviewer \S+|'\{.*|^echo.*", "", line)
            for _, block in blocks(f"{language}/{page}")
            for line in typed(block)
        ]
        for language in ("en", "zh")
    ]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_settings_and_commands_of_training_are_understood(
    language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("support", "chain"):
        Path(folder).mkdir()
    template = DOCS.parent / f"src/inhouse/api/templates/inhouse.{language}.yaml"
    project = yaml.safe_load(template.read_text(encoding="utf-8").replace("NAME", "support"))
    understood = []

    def understand(command: Command, values: dict[str, Any], as_json: bool) -> None:
        request: Any = request_of(request_model(api_function(command)), values)
        if command.project:
            load(Path("support/inhouse.yaml"), request.overrides)
        understood.append(command.path)

    monkeypatch.setattr("inhouse.cli.main.call", understand)
    Path("support/inhouse.yaml").write_text(yaml.safe_dump(project), encoding="utf-8")
    for kind, block in blocks(f"{language}/training.md"):
        if kind == "yaml" and block.startswith("#"):
            paste_settings(block)
        elif kind == "yaml":
            train = {**project["train"], **yaml.safe_load(block)["train"]}
            Path("shown.yaml").write_text(yaml.safe_dump({**project, "train": train}), encoding="utf-8")
            load(Path("shown.yaml"))
        else:
            lines = list(typed(block))
            codes = [main(shlex.split(line)[1:]) for line in lines]
            assert codes == [0] * len(lines), lines
    assert {("train", "plan"), ("train", "search"), ("train", "launch"), ("data", "tokens")} <= set(understood)


def defaults(model: type[BaseModel], before: str = "") -> dict[str, str]:
    """The default of every setting as YAML has it, by its dotted name; "" for none."""
    found: dict[str, str] = {}
    for name, field in model.model_fields.items():
        default = None if field.is_required() else field.default
        if isinstance(default, BaseModel) and not isinstance(default, Gguf):
            found |= defaults(type(default), f"{before}{name}.")
        elif not isinstance(default, BaseModel):
            plain = list(default) if isinstance(default, tuple) else default
            shown = yaml.safe_dump(plain, default_flow_style=True).removesuffix("...\n").strip()
            found[before + name] = "" if default is None else f"`{shown}`"
    return found


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(("page", "params"), [("training", TrainParams), ("serving", ServeParams)])
def test_tables_of_settings_tell_the_defaults_of_the_code(language: str, page: str, params: type[BaseModel]) -> None:
    known = defaults(params) | {"method.num_virtual_tokens": defaults(Prompt)["num_virtual_tokens"]}
    known |= {"objective.label_smoothing": defaults(Dpo)["label_smoothing"]}
    text = (DOCS / language / f"{page}.md").read_text(encoding="utf-8")
    told = {name: default for name, default in re.findall(r"^\| `([\w.]+)` \| `([^`]*)` \|", text, re.M)}
    assert len(told.keys() & known.keys()) >= 10
    for name in told.keys() & known.keys():
        assert yaml.safe_load(told[name]) == yaml.safe_load(known[name].strip("`")), name


@pytest.mark.parametrize("language", ["en", "zh"])
def test_page_on_releases_says_what_the_code_does(
    language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (DOCS / language / "evaluate-release.md").read_text(encoding="utf-8")
    told = {name: default for name, default in re.findall(r"^\| `([\w.]+)` \| (.*?) \|", text, re.M)}
    known = defaults(EvaluateParams) | defaults(CompressParams) | defaults(ReleaseParams) | defaults(Gate)
    known |= {"method.type": f"`{Gguf().type}`", "metrics": told["metrics"]}
    apart = {"at_least", "at_most"}  # in one line of the table
    assert {name: told[name] for name in known if name not in apart} == {
        name: default for name, default in known.items() if name not in apart
    }
    template = DOCS.parent / f"src/inhouse/api/templates/inhouse.{language}.yaml"
    project = yaml.safe_load(template.read_text(encoding="utf-8").replace("NAME", "support"))
    monkeypatch.chdir(tmp_path)
    Path("plain").mkdir()
    Path("support").mkdir()
    Path("support/inhouse.yaml").write_text(yaml.safe_dump(project), encoding="utf-8")
    understood = []

    def understand(command: Command, values: dict[str, Any], as_json: bool) -> None:
        request: Any = request_of(request_model(api_function(command)), values)
        if command.project:
            load(request.project / "inhouse.yaml", request.overrides)
        understood.append(command.path)

    monkeypatch.setattr("inhouse.cli.main.call", understand)
    for kind, block in blocks(f"{language}/evaluate-release.md"):
        if kind == "yaml" and block.startswith("#"):
            paste_settings(block)
        elif kind == "yaml":
            Path("shown.yaml").write_text(yaml.safe_dump(project | yaml.safe_load(block)), encoding="utf-8")
            load(Path("shown.yaml"))
        else:
            lines = [line for line in typed(block) if line.startswith("inhouse ")]
            assert [main(shlex.split(line)[1:]) for line in lines] == [0] * len(lines), lines
    assert {("evaluate",), ("compress",), ("release", "promote"), ("chat",)} <= set(understood)
