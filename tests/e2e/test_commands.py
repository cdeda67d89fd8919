"""Commands that look at what a run made, start something new, or manage releases and keys."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from projects import Project

from inhouse.api.project import InitRequest, init
from inhouse.cli import views
from inhouse.cli.main import main
from inhouse.core.errors import UserError
from inhouse.flow.project import Project as ProjectFile
from inhouse.flow.project import load

Make = Callable[[str], Project]


def test_run_again_is_answered_without_a_job(made_project: Project) -> None:
    jobs = len(made_project.json("jobs", "list")["jobs"])
    result = made_project.json("run")
    assert {s["state"] for s in result["steps"]} == {"cached"}
    assert len(made_project.json("jobs", "list")["jobs"]) == jobs


def test_dry_run_says_what_a_change_would_rerun(made_project: Project) -> None:
    result = made_project.json("run", "--dry-run", "train.learning_rate=5e-4")
    states = {s["name"]: s["state"] for s in result["steps"]}
    assert states["base"] == states["dataset"] == states["base_predictions"] == "cached"
    assert states["tuned"] == "run" and states["report"] == "waits"
    again = made_project.json("run", "--dry-run", "--again", "data")
    assert {s["name"]: s["state"] for s in again["steps"]}["dataset"] == "run"
    assert "will run" in made_project.run("run", "--dry-run", "--again", "evaluate").stdout


def test_run_until_a_step_ends_there(made_project: Project) -> None:
    assert [s["name"] for s in made_project.json("train")["steps"]] == ["base", "dataset", "tuned"]
    done = made_project.run("data", "build")
    assert done.returncode == 0 and "dataset" in done.stdout
    assert made_project.run("compress").returncode == 2


def test_offline_run_of_local_files_opens_no_socket(
    made_project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    words = ["run", str(made_project.file), "--offline", "--json", "--workspace", str(made_project.folder / ".inhouse")]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["release"]["label"] == "tiny:v1"
    words[1:2] = ["model.base=pypi:no-such-model==1.0#x.gguf", str(made_project.file)]
    assert main(words) == 2


def test_report_prints_the_table_and_writes_the_page(made_project: Project, tmp_path: Path) -> None:
    done = made_project.run("report", "--html", str(tmp_path / "out" / "page.html"))
    assert "Accuracy" in done.stdout and "base" in done.stdout and "tuned" in done.stdout
    page = (tmp_path / "out" / "page.html").read_text()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert "tuned.accuracy" in made_project.json("report")["figures"]
    assert "准确率" in made_project.run("report", "--lang", "zh").stdout
    dataset = made_project.json("data", "build")["steps"][-1]["id"]
    assert made_project.run("report", dataset).returncode == 2


def test_lineage_reaches_the_data_and_the_base(made_project: Project) -> None:
    lines = made_project.json("lineage")["lines"]
    assert lines[0]["record"]["kind"] == "release"
    kinds = {line["record"]["kind"] for line in lines}
    assert kinds == {"release", "model", "report", "predictions", "dataset"}
    assert any("news" in line["record"]["external"] for line in lines)
    shown = made_project.run("lineage", lines[0]["record"]["id"][:8]).stdout
    assert "release" in shown and "news" in shown
    assert made_project.run("lineage", "ffffffff").returncode == 2
    by_name = made_project.json("lineage", "tiny:v1")
    assert by_name["lines"] == lines and by_name["made"] == []
    dataset = next(line["record"]["id"] for line in lines if line["record"]["kind"] == "dataset")
    made = made_project.json("lineage", dataset)["made"]
    assert {one["record"]["kind"] for one in made} >= {"model", "predictions", "report", "release"}
    assert [one["releases"] for one in made if one["record"]["kind"] == "release"] == [["tiny:v1"]]
    assert "tiny:v1" in made_project.run("lineage", dataset).stdout


def test_release_list_and_show_give_the_evidence(made_project: Project) -> None:
    (line,) = made_project.json("release", "list")["releases"]
    assert line["label"] == "tiny:v1" and line["passed"] and line["deployments"] == ["tiny"]
    assert "tiny:v1" in made_project.run("release", "list").stdout
    evidence = made_project.json("release", "show", "tiny:v1")["evidence"]
    assert "tuned.perplexity" in json.dumps(evidence)
    assert "tuned.perplexity" in made_project.run("release", "show", line["artifact"][:8]).stdout
    assert made_project.run("release", "show", "tiny:v9").returncode == 2


def test_promote_and_rollback_move_the_deployment(half_made_project: Project) -> None:
    project = half_made_project
    assert project.run("run").returncode == 0
    assert project.run("release", "rollback", "tiny").returncode == 2
    assert project.json("run", "serve.context_length=512")["release"]["serving"] == "tiny:v2"
    back = project.json("release", "rollback", "tiny")
    assert (back["release"], back["previous"]) == ("tiny:v1", "tiny:v2")
    stays = project.run("run", "serve.context_length=512")
    assert "stays at tiny:v1" in stays.stdout
    assert "tiny now serves tiny:v2" in project.run("release", "promote", "tiny:v2").stdout
    nameless = project.json("run", "release.deployment=null")["release"]
    assert nameless["label"] == "tiny:v1" and nameless["serving"] is None  # the same release, without a deployment
    assert "is registered" in project.run("run", "release.deployment=null").stdout
    other = project.json("release", "promote", "tiny:v1", "--deployment", "canary")
    assert other["deployment"] == "canary"
    many = project.run("serve")
    assert many.returncode == 2 and "canary, tiny" in many.stderr


def test_serve_of_what_its_engine_cannot_load_is_a_clear_error(half_made_project: Project) -> None:
    assert half_made_project.run("run", "serve.engine=llamacpp").returncode == 0  # of a folder that is no GGUF file
    for words in (("serve", "--port", "0"), ("chat", "Hello")):
        done = half_made_project.run(*words, timeout=120)
        assert done.returncode == 2, done.stderr
        assert "compress" in done.stderr and "Traceback" not in done.stderr


def test_commands_in_an_empty_workspace_say_what_to_do(tiny_project: Make) -> None:
    project = tiny_project("empty")
    assert "inhouse run" in project.run("release", "list").stdout
    assert "Nothing has been made" in project.run("lineage").stdout
    assert "keys create" in project.run("keys", "list").stdout
    assert project.json("jobs", "list")["jobs"] == []
    for words in (("report",), ("serve",), ("chat", "Hello"), ("jobs", "tail"), ("keys", "revoke", "x")):
        done = project.run(*words)
        assert done.returncode == 2 and done.stderr.startswith("Error:"), words


def test_keys_are_shown_once_and_revoked(tiny_project: Make) -> None:
    project = tiny_project("keys")
    printed = project.run("keys", "create", "laptop", "--expires-days", "2").stdout
    token = printed.strip().splitlines()[-1]
    assert token.startswith("ih-") and len(token) > 40
    listed = project.run("keys", "list").stdout
    assert "laptop" in listed and token not in listed
    (key,) = project.json("keys", "revoke", "laptop")["keys"]
    assert key["revoked"]
    assert token.encode() not in (project.folder / ".inhouse" / "registry.db").read_bytes()


def test_data_check_shows_rows_and_reasons_and_builds_nothing(tiny_project: Make) -> None:
    project = tiny_project("check")
    (project.folder / "news.csv").open("a").write("same twice,money\nsame twice,money\nno label here,\n")
    done = project.run("data", "check", "--rows", "2", "data.fail_above=0.5")
    assert done.returncode == 0, done.stderr
    assert "exact_dedup" in done.stdout and "Desk?" in done.stdout
    found = project.json("data", "check", "data.fail_above=0.5")
    summary = found["summary"]
    assert summary["read"] == sum(summary["rows"].values()) + summary["rejected"]["total"] + summary["dropped"]["total"]
    assert not list((project.folder / ".inhouse" / "objects").iterdir())
    project.file.write_text("name: x\nmodel: {base: ./m}\n")
    assert project.run("data", "check").returncode == 2


def test_doctor_names_every_extra(made_project: Project) -> None:
    done = made_project.run("doctor")
    for extra in ("serve", "data", "train", "eval", "compress"):
        assert f"extra.{extra}" in done.stdout
    assert made_project.json("doctor")["hardware"]["cores"] >= 1


def test_models_list_names_terms_and_fit(made_project: Project) -> None:
    done = made_project.run("models", "list")
    assert "smollm2-135m-instruct" in done.stdout and "Apache-2.0" in done.stdout
    assert "smollm3" not in done.stdout
    near = made_project.run("models", "pull", "smollm2-135m-instrct")
    assert near.returncode == 2 and "smollm2-135m-instruct" in near.stderr


def test_models_pull_keeps_a_local_model(made_project: Project, tiny_llama: Path) -> None:
    model = made_project.json("models", "pull", str(tiny_llama))
    assert model["facts"]["architecture"] == "llama" and Path(model["path"]).exists()
    assert "llama" in made_project.run("models", "pull", str(tiny_llama)).stdout


@pytest.mark.parametrize("language", ["en", "zh"])
def test_init_writes_a_project_that_is_valid(tmp_path: Path, language: str) -> None:
    words = ["init", str(tmp_path / "客服 Support"), "--lang", language]
    assert main(words) == 0
    project = load(tmp_path / "客服 Support")
    assert isinstance(project, ProjectFile) and project.name == "support"
    assert main(words) == 2
    schema = json.loads((tmp_path / "客服 Support" / "inhouse.schema.json").read_text())
    assert "train" in schema["properties"] and schema["required"]


def test_init_in_a_nameless_folder_finds_a_name(tmp_path: Path) -> None:
    (tmp_path / "项目").mkdir()
    (path, *_) = init(InitRequest(folder=tmp_path / "项目")).files
    assert load(path).name == "project"
    with pytest.raises(UserError):
        init(InitRequest(folder=tmp_path / "项目"))


def test_init_names_a_command_that_can_be_copied_and_paths_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "a [bold]b"]) == 0
    said = capsys.readouterr().out
    command = re.search(r"`(inhouse run .*?) --dry-run`", said.replace("\n", ""))
    assert command and shlex.split(command[1]) == ["inhouse", "run", "a [bold]b/inhouse.yaml"]
    assert "+ a [bold]b/inhouse.yaml" in said


def test_schema_is_printed_or_written(made_project: Project, tmp_path: Path) -> None:
    printed = made_project.run("schema").stdout
    assert made_project.run("schema", "--output", str(tmp_path / "s.json")).returncode == 0
    assert json.loads(printed) == json.loads((tmp_path / "s.json").read_text())
    assert made_project.run("schema", "--output", "/dev/null/x/s.json").returncode == 2


def test_demo_writes_the_example_and_runs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["demo", str(tmp_path / "desk"), "--offline", "--workspace", str(tmp_path / "ws"), "--json"]
    assert main(words) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "sources.offline"
    assert load(tmp_path / "desk").name == "desk-routing"


@pytest.mark.parametrize(
    "words",
    [
        ["run", "a.yaml", "b.yaml"],
        ["run", "--until", "lunch"],
        ["nothing"],
        ["keys", "create", ""],
        ["chat", "--max-tokens", "0"],
    ],
)
def test_wrong_usage_ends_in_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "Usage" in capsys.readouterr().err


@pytest.mark.parametrize("group", ["models", "data", "release", "keys", "jobs"])
def test_group_help_lists_its_commands(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([group])
    printed = capsys.readouterr()
    assert "list" in printed.out + printed.err or "build" in printed.out + printed.err


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("inhouse 0.")


def test_every_command_has_help_in_both_languages(capsys: pytest.CaptureFixture[str]) -> None:
    from inhouse.cli.commands import COMMANDS

    for command in COMMANDS:
        for language in ("en", "zh"):
            assert main([*command.path, "--help", "--lang", language]) == 0
            assert "--json" in capsys.readouterr().out


def test_missing_extra_ends_in_exit_code_4(made_project: Project) -> None:
    code = (
        "import importlib.util as u, sys; real = u.find_spec;"
        "u.find_spec = lambda name, *a: None if name == 'polars' else real(name, *a);"
        "from inhouse.cli.main import main; from inhouse.api import run;"
        "import inhouse.api.jobs as jobs; from inhouse.core.run import Events;"
        "jobs.attach = lambda function, request, watch: function(request, Events());"
        "sys.exit(main(['run', 'data.split.test=0.4']))"
    )
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=made_project.folder, capture_output=True, text=True, check=False,
        env={**os.environ, "LC_ALL": "en_US.UTF-8"},
    )  # fmt: skip
    assert done.returncode == 4 and 'pip install "inhouse[data]"' in done.stderr, done.stderr


def test_bug_is_one_line_and_its_traceback_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def break_down(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("inhouse.api.machine.examine", break_down)
    assert main(["doctor"]) == 1
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said and "Traceback" not in said
    log = Path(said.rsplit(" ", 1)[1].strip())
    assert "break_down" in log.read_text()
    log.unlink()


@pytest.mark.parametrize(("number", "said"), [(errno.EROFS, "read-only"), (errno.ENOSPC, "MB")])
def test_disk_that_takes_nothing_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, number: int, said: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path / "x"))

    monkeypatch.setattr("inhouse.api.machine.examine", refuse)
    assert main(["doctor"]) == 2
    told = capsys.readouterr().err
    assert str(tmp_path) in told and "fault of inhouse" not in told


def test_values_with_brackets_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    views.table(Console(width=100), "a", rows=[('pip install "inhouse[serve]"',), ("a[/b].csv",)])
    printed = capsys.readouterr().out
    assert 'inhouse[serve]"' in printed and "a[/b].csv" in printed


def test_reader_that_leaves_early_is_no_error(made_project: Project) -> None:
    import subprocess

    line = f"{sys.executable} -m inhouse schema | head -1"
    done = subprocess.run(line, shell=True, cwd=made_project.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_no_process_of_ours_is_left_behind(made_project: Project) -> None:
    made_project.run("run")
    assert threading.active_count() < 20
    left = [p for p in psutil.process_iter(["cmdline"]) if "inhouse.api.worker" in " ".join(p.info["cmdline"] or [])]
    assert not [p for p in left if str(made_project.folder) in " ".join(p.info["cmdline"] or [])]


def test_terminal_without_the_signs_still_gets_the_verdict(made_project: Project) -> None:
    import subprocess

    done = subprocess.run(
        [sys.executable, "-m", "inhouse", "release", "list"], cwd=made_project.folder, capture_output=True, check=False,
        env={**os.environ, "PYTHONIOENCODING": "gbk", "INHOUSE_LANG": "zh"},
    )  # fmt: skip
    assert done.returncode == 0 and "tiny:v1" in done.stdout.decode("gbk"), done.stderr
